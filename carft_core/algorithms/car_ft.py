"""CAR-FT: fine-tuning that keeps the distribution over contexts which the zero-shot model saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative, Positive
from carft_sweep.carft_core.models.classifier import Classifier, built
from carft_sweep.carft_core.models.teacher import Teacher

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
    re-implementations differ in scale, direction and reduction; docs/methods.md#car_ft says why the
    defaults are what they are.
    """

    name: ClassVar[str] = "car_ft"
    summary: ClassVar[str] = "Fine-tuning with a KL term that keeps the context distribution"
    uses: ClassVar[frozenset[str]] = frozenset({"contexts"})

    kl_weight: NonNegative = 1.0
    """The weight of the KL term; the default has no published source. At 0 the term is logged and
    trains nothing: plain fine-tuning."""
    context_scale: Positive | None = None
    """The scale s of the context logits; left out, CLIP's own. With 1 the KL is about 1e-4 and
    CAR-FT silently is fine-tuning."""
    kl_direction: Literal["teacher_student", "student_teacher"] = "teacher_student"
    """Which distribution comes first: KL(teacher || student), as in the paper, or the reverse."""

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return cross-entropy plus the weighted KL; `teacher_context_entropy` is in nats, as the
        KL is. Raises ValueError when the batch comes without the teacher."""
        model = built(model, Classifier)
        features = model.features(batch.images)
        cross_entropy = batch.cross_entropy(model.logits(features))
        frozen = teacher.context_log_probs(batch.zero_shot(), self.context_scale)

        def divergence() -> Tensor:
            tuned = teacher.context_log_probs(features, self.context_scale)
            p, q = (frozen, tuned) if self.kl_direction == "teacher_student" else (tuned, frozen)
            # F.kl_div(q, p) is KL(p || q). `batchmean` sums over contexts; `mean` would divide the
            # weight by their number.
            return F.kl_div(q, p, reduction="batchmean", log_target=True)

        total, kl = penalised(cross_entropy, self.kl_weight, divergence)
        entropy = -(frozen.exp() * frozen).sum(dim=1).mean()
        logs = {"context_kl": kl, "teacher_context_entropy": entropy}
        return total, {"cross_entropy": cross_entropy, **logs}

    def warnings(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """Warn when the KL stayed so small that the run silently was fine-tuning."""
        kls = [metrics["train/context_kl"] for metrics in history[1:]]
        if self.kl_weight == 0 or not kls or max(kls) * self.kl_weight >= KL_TOO_SMALL:
            return []
        if max(kls) == 0:
            return [
                "the context KL was zero throughout, so this run is plain fine-tuning; has "
                "prompts.contexts a single template?"
            ]
        return [
            f"the weighted context KL never exceeded {max(kls) * self.kl_weight:.1e}: it was too "
            "small to act, and this run is close to plain fine-tuning; is the context scale 1, or "
            "the learning rate tiny?"
        ]
