"""Fine-tuning: cross-entropy from the zero-shot head, image tower and head together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import nn
from torch.nn import functional as F

from carft_core.algorithms.base import Algorithm, Batch, Term

if TYPE_CHECKING:
    from carft_core.teacher import Teacher


class FineTune(Algorithm):
    """End-to-end fine-tuning of the image tower and a head that starts at the zero-shot one.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903),
    the standard fine-tuning that WiSE-FT starts from.
    """

    name: ClassVar[str] = "fine_tune"
    summary: ClassVar[str] = "Cross-entropy on image tower and head, from the zero-shot head"

    def terms(self, student: nn.Module, batch: Batch, teacher: Teacher) -> Mapping[str, Term]:
        """`cross_entropy`: mean over the batch of CE(s f W_cls', y)."""
        del teacher  # Plain fine-tuning asks nothing of the zero-shot model.
        logits = student(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=batch.label_smoothing)
        return {"cross_entropy": Term(loss)}
