"""Feature distillation: fine-tuning that keeps the image tower's outputs."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.teacher import Teacher


class FeatureDistillation(Algorithm):
    """Fine-tuning with CE + distillation_weight * the distance to the zero-shot model's outputs.

    With F(x; w) [B, d] the image tower's outputs before they are normalised, of the same views,

        d = mean over images and dimensions of (F(x; tuned) - F(x; zero-shot))^2

    Source: Xiao et al. 2023, "Masked Images Are Counterfactual Samples for Robust Fine-tuning"
    (arXiv 2303.03052), equation of the distillation loss, and Coxy7/robust-finetuning; here of the
    images as they are, the baseline without masks. The weight is their code's.
    """

    name: ClassVar[str] = "feature_distillation"
    summary: ClassVar[str] = "Fine-tuning that keeps the image tower's outputs"

    distillation_weight: NonNegative = 30.0
    """The weight of the distance. At 0 it is logged and trains nothing."""

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return cross-entropy plus the weighted distance between tuned and zero-shot outputs."""
        model = built(model, ImageClassifier)
        with torch.no_grad():
            frozen = teacher.classifier.embed(batch.images)
        outputs = model.embed(batch.images)
        cross_entropy = batch.cross_entropy(model.logits(F.normalize(outputs, dim=-1)))
        total, distance = penalised(
            cross_entropy, self.distillation_weight, lambda: F.mse_loss(outputs, frozen)
        )
        return total, {"cross_entropy": cross_entropy, "distance": distance}
