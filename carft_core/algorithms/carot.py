"""CaRot: contrastive fine-tuning that is guided by its own moving average."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import AnchoredContrastive, Batch, Loss
from carft_sweep.carft_core.config.fields import NonNegative, PositiveInt
from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.classifier import built
from carft_sweep.carft_core.models.contrastive import averaged_clips, contrastive_loss
from carft_sweep.carft_core.models.teacher import Teacher, evaluating
from carft_sweep.carft_core.models.towers import projection

MOMENTA, RISE = (0.05, 0.9), 0.2
"""The momentum of the average at the start and at its highest, and the fraction of the steps in
which it rises from one to the other."""


class CaRot(AnchoredContrastive):
    """Calibrated robust fine-tuning: FLYP's loss, a constraint, and self-distillation.

    With W_v [width, d] and W_t the projections of the image and the text tower, and with p the
    softmax over the batch of the similarities s f t' of images and captions, the loss is

        FLYP + cross_weight |W_v W_t'| + orthogonality_weight |W_v' W_v - I|
             + distillation_weight (CE(p_image(average), p_image) + CE(p_text(average), p_text))

    with Frobenius norms, and CE a sum over the batch's other side and a mean over the batch. The
    average holds both towers; after the steps 0, `every`, 2 `every`, ... it becomes the momentum
    times itself plus the rest times the weights. The momentum rises from 0.05 to 0.9 over the first
    fifth of the run. The classifier is of the weights, not of the average.

    Source: Oh et al. 2024, "Towards Calibrated Robust Fine-Tuning of Vision-Language Models"
    (arXiv 2311.01723), in the form and with the weights of MLAI-Yonsei/CaRot. There gradients are
    not clipped, and the first step has no distillation, whose gradient is zero there.
    """

    name: ClassVar[str] = "carot"
    summary: ClassVar[str] = "FLYP with orthogonality, distilled from its own moving average"

    cross_weight: NonNegative = 0.05
    """The weight of the norm of both projections' product."""
    orthogonality_weight: NonNegative = 0.2
    """The weight of the image projection's distance from orthogonality."""
    distillation_weight: NonNegative = 1.5
    """The weight of the self-distillation."""
    every: PositiveInt = 500
    """After how many steps the average is updated."""

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the sum of the four terms of the class's formula, and each term to log."""
        clip, average = averaged_clips(model)
        images, texts = batch.pairs(clip)
        total, logs = contrastive_loss(clip.scale, images, texts, batch.label_smoothing)
        with torch.no_grad(), evaluating(average):
            old_images, old_texts = batch.pairs(average)
        with torch.autocast(images.device.type, enabled=False):
            visual, cross = projection(clip.visual), clip.crossing()
            identity = torch.eye(visual.shape[1], device=visual.device)
            orthogonality = torch.linalg.matrix_norm(visual.T @ visual - identity)
            old, new = average.scale * old_images @ old_texts.T, clip.scale * images @ texts.T
            distillation = soft_cross_entropy(old, new) + soft_cross_entropy(old.T, new.T)
        total = total + self.cross_weight * cross + self.orthogonality_weight * orthogonality
        total = total + self.distillation_weight * distillation
        terms = {"cross": cross, "orthogonality": orthogonality, "distillation": distillation}
        return total, {**logs, **terms}

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Update the average after every `every`-th step."""
        if step % self.every == 0:
            least, most = MOMENTA
            built(model, Averaged).update(least + (most - least) * min(1.0, step / (RISE * steps)))


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of the rows of softmax(target) and softmax(logits) [N, C]."""
    return F.cross_entropy(logits, target.softmax(dim=1))
