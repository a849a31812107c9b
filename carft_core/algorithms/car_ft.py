"""CAR-FT: fine-tuning that keeps the distribution over contexts which the zero-shot model saw."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from carft_core.algorithms.base import Algorithm, Batch, Term
from carft_core.clip import ImageClassifier

if TYPE_CHECKING:
    from carft_core.teacher import Teacher


KL_TOO_SMALL = 1e-3
"""A weighted KL below this is beneath the noise of the cross-entropy."""


class CarFt(Algorithm):
    """Context-Aware Robust Fine-Tuning: CE + kl_weight * KL between context distributions.

    The context distribution of an image is `softmax(s * f @ W_ctx.T)` over the K templates, f the
    unit-norm image feature, `W_ctx[k]` the normalised mean over the task's own classes of the
    text features of template k, and s CLIP's own frozen logit scale, on both sides. The loss is

        CE(s f W_cls', y) + kl_weight * KL(p_ctx(x; zero-shot) || p_ctx(x; tuned))

    as a sum over contexts and a mean over the batch; the teacher sees the same view.

    Source: Mao et al. 2022, "Context-Aware Robust Fine-Tuning" (arXiv 2211.16175). Public
    re-implementations differ in scale, direction and reduction; docs/car-ft.md says why the
    defaults are what they are.
    """

    name: ClassVar[str] = "car_ft"
    summary: ClassVar[str] = "Fine-tuning with a KL term that keeps the context distribution"
    teacher_quantities: ClassVar[frozenset[str]] = frozenset({"features"})

    kl_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """The weight of the KL term. At 0 it is logged and trains nothing: plain fine-tuning."""
    context_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The scale s of the context logits; None is CLIP's own. With 1 the KL is about 1e-4 and
    CAR-FT silently is fine-tuning."""
    kl_direction: Literal["teacher_student", "student_teacher"] = "teacher_student"
    """Which distribution comes first: KL(teacher || student), as in the paper, or the reverse."""

    def terms(self, student: nn.Module, batch: Batch, teacher: Teacher) -> Mapping[str, Term]:
        """`cross_entropy` and `context_kl`, each a mean over the batch.

        Raises TypeError when the student is not an image classifier, ValueError when the batch
        comes without the teacher's features.
        """
        if not isinstance(student, ImageClassifier):
            raise TypeError("car_ft trains an image classifier with a linear head")
        if batch.teacher_features is None:
            raise ValueError("car_ft needs the teacher's features of each view")
        features = student.features(batch.images)
        logits = student.logits(features)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=batch.label_smoothing)
        # With weight 0 the term must not touch the graph: the weights then are fine_tune's, bit
        # for bit.
        with contextlib.nullcontext() if self.kl_weight > 0 else torch.no_grad():
            kl = self._context_kl(features, batch.teacher_features, teacher)
        return {"cross_entropy": Term(loss), "context_kl": Term(kl, self.kl_weight)}

    def probe(self, batch: Batch, teacher: Teacher) -> Mapping[str, float]:
        """`teacher_context_entropy`: mean entropy, in nats, of the teacher's p_ctx on the batch."""
        if batch.teacher_features is None:
            raise ValueError("car_ft needs the teacher's features of each view")
        log_probs = teacher.context_log_probs(batch.teacher_features, self.context_scale)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
        return {"teacher_context_entropy": float(entropy)}

    def warnings(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """Says so when the KL stayed so small that the run silently was fine-tuning."""
        seen = [metrics["train/context_kl"] for metrics in history[1:]]
        if self.kl_weight == 0 or not seen or max(seen) * self.kl_weight >= KL_TOO_SMALL:
            return []
        if max(seen) == 0:
            return [
                "the context KL was zero throughout, so this run is plain fine-tuning; has "
                "prompts.contexts a single template?"
            ]
        return [
            f"the weighted context KL never exceeded {max(seen) * self.kl_weight:.1e}: it was too "
            "small to act, and this run is close to plain fine-tuning; is the context scale 1, or "
            "the learning rate tiny?"
        ]

    def _context_kl(self, features: Tensor, teacher_features: Tensor, teacher: Teacher) -> Tensor:
        scale = teacher.scale if self.context_scale is None else self.context_scale
        tuned = teacher.context_log_probs(features, scale)
        zero_shot = teacher.context_log_probs(teacher_features, scale)
        first, second = (
            (zero_shot, tuned) if self.kl_direction == "teacher_student" else (tuned, zero_shot)
        )
        # F.kl_div(input, target) is KL(target || input). `batchmean` sums over contexts; `mean`
        # would divide the weight by their number.
        return F.kl_div(second, first, reduction="batchmean", log_target=True)
