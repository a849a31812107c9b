"""TRACER: contrastive fine-tuning that is anchored to the average of its whole trajectory."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import AnchoredContrastive, Batch, Loss
from carft_sweep.carft_core.config.fields import NonNegative, Positive
from carft_sweep.carft_core.models.averages import Averaged, beta_decay
from carft_sweep.carft_core.models.classifier import built
from carft_sweep.carft_core.models.contrastive import averaged_clips, contrastive_loss
from carft_sweep.carft_core.models.teacher import Teacher, evaluating


class Tracer(AnchoredContrastive):
    """FLYP's loss, distilled from a weighted average of the trajectory.

    With f, t and s the features of a batch's images and captions and the scale, f_a, t_a and s_a
    those of the average, P and P_a the softmax over texts of s f t' and of s_a f_a t_a', and Q that
    of s f t_a', the loss is

        FLYP + cross_weight |W_v W_t'| + distillation_weight (feature_weight FD + CRD + ICL + CKD)

        FD  = mean((f - f_a)^2) + mean((t - t_a)^2)
        CRD = KL(P_a || P)
        ICL = CE(s f t_a', 1..B)
        CKD = KL(P_a || Q)

    Each of the last three is the mean of this form and of the form with images and texts exchanged,
    a sum over the batch's other side and a mean over the batch. W_v and W_t are the projections of
    the towers. The average, of both towers, weights the state after t = 0, 1, ..., T of T steps by
    the density of Beta(beta, beta) at (t + 1/2) / (T + 1), and is updated after every step. The
    classifier is of the weights.

    Source: Asadollahzadeh et al. 2026, "TRACER: Persistent Regularization for Robust Multimodal
    Finetuning" (ICML), in the form and with the weights of HesamAsad/TRACER,
    example_scripts/tracer_beta.sh, whose tracer.sh has weights of 0. There gradients are not
    clipped, and the first step has no distillation.
    """

    name: ClassVar[str] = "tracer"
    summary: ClassVar[str] = "FLYP, distilled from the average of the whole trajectory"

    cross_weight: NonNegative = 0.05
    """The weight of the norm of both projections' product."""
    distillation_weight: NonNegative = 0.9
    """The weight of the four terms of distillation together."""
    feature_weight: NonNegative = 2000.0
    """The weight of FD, the features' distance, among the four terms."""
    beta: Positive = 0.5
    """The Beta distribution's parameter: below 1 the average is mostly of the first and the present
    weights, at 1 of all equally."""

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the sum of the terms of the class's formula, and each term to log."""
        clip, average = averaged_clips(model)
        f, t = batch.pairs(clip)
        total, logs = contrastive_loss(clip.scale, f, t, batch.label_smoothing)
        with torch.no_grad(), evaluating(average):
            f_a, t_a = batch.pairs(average)
        with torch.autocast(f.device.type, enabled=False):
            cross = clip.crossing()
            features = F.mse_loss(f, f_a) + F.mse_loss(t, t_a)
            anchor = average.scale * f_a @ t_a.T
            own, mixed = clip.scale * f @ t.T, (clip.scale * f @ t_a.T, clip.scale * t @ f_a.T)
            pairs = torch.arange(len(f), device=f.device)
            relations = (divergence(anchor, own) + divergence(anchor.T, own.T)) / 2
            interaction = (F.cross_entropy(mixed[0], pairs) + F.cross_entropy(mixed[1], pairs)) / 2
            exchange = (divergence(anchor, mixed[0]) + divergence(anchor.T, mixed[1])) / 2
        distilled = self.feature_weight * features + relations + interaction + exchange
        total = total + self.cross_weight * cross + self.distillation_weight * distilled
        terms = {"features": features, "relations": relations, "interaction": interaction}
        return total, {**logs, "cross": cross, **terms, "exchange": exchange}

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Update the Beta moving average of both towers."""
        built(model, Averaged).update(beta_decay(step, steps, self.beta))


def divergence(anchor: Tensor, logits: Tensor) -> Tensor:
    """Return the mean over rows of KL(softmax(anchor) || softmax(logits))."""
    p, q = anchor.log_softmax(dim=1), logits.log_softmax(dim=1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)
