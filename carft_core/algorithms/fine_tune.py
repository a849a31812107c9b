"""Fine-tuning: cross-entropy from the zero-shot head, image tower and head together."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss
from carft_sweep.carft_core.models.teacher import Teacher


class FineTune(Algorithm):
    """End-to-end fine-tuning of the image tower and a head that starts at the zero-shot one.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903),
    the standard fine-tuning that WiSE-FT starts from.
    """

    name: ClassVar[str] = "fine_tune"
    summary: ClassVar[str] = "Cross-entropy on image tower and head, from the zero-shot head"

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the cross-entropy of the classifier's logits, CE(s f W_cls', y)."""
        loss = batch.cross_entropy(model(batch.images))
        return loss, {"cross_entropy": loss}
