"""CLIP-Adapter: a bottleneck network on frozen image features, mixed with these features."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss
from carft_sweep.carft_core.config.fields import PositiveInt, UnitInterval
from carft_sweep.carft_core.models.classifier import Classifier, ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher


class Adapter(nn.Module):
    """A network from features [B, d] to features [B, d]: two layers with a ReLU, without a bias."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, max(1, width // reduction), bias=False)
        self.up = nn.Linear(max(1, width // reduction), width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the adapted features [B, d], before they are mixed with the tower's own."""
        return F.relu(self.up(F.relu(self.down(features))))


class AdaptedClassifier(Classifier):
    """The zero-shot classifier with an adapter between its tower and its head."""

    def __init__(self, frozen: ImageClassifier, adapter: nn.Module, alpha: float) -> None:
        super().__init__()
        self.frozen, self.adapter, self.alpha = frozen, adapter, alpha

    def features(self, images: Tensor) -> Tensor:
        """Return unit-norm adapted features [B, d], still in the space of the texts."""
        return self.adapted(self.frozen.features(images))

    def adapted(self, features: Tensor) -> Tensor:
        """Return the unit-norm mixture of the tower's features [B, d] and their adapted ones."""
        mixed = self.alpha * self.adapter(features).float() + (1 - self.alpha) * features
        return F.normalize(mixed, dim=-1)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits [B, C] of adapted features, by the zero-shot head."""
        return self.frozen.logits(features)


class ClipAdapter(Algorithm):
    """Two small layers that train on the frozen tower's features f, under the zero-shot head.

    The logits are `s norm(alpha A(f) + (1 - alpha) f) W_cls'` with `A(f) = relu(U relu(D f))`. Its
    module is the adapter alone, so a run's weights are small. The official code adapts f before it
    is normalised, which is the same: without biases A(c f) = c A(f) for c > 0.

    Source: Gao et al. 2021, "CLIP-Adapter: Better Vision-Language Models with Feature Adapters"
    (arXiv 2110.04544), section 3.2, with the image adapter alone. The second ReLU is the authors'
    code's, whose defaults are these; it trains by SGD, with one template a task.
    """

    name: ClassVar[str] = "clip_adapter"
    summary: ClassVar[str] = "Two small layers between the frozen tower and the zero-shot head"
    starts_at_zero_shot: ClassVar[bool] = False
    keeps_shape: ClassVar[bool] = False
    needs_plain_tower: ClassVar[bool] = True

    alpha: UnitInterval = 0.2
    """How much of the mixture is the adapter's; 0 is the zero-shot model."""
    reduction: PositiveInt = 4
    """How many times narrower than the features the adapter's hidden layer is."""

    def build(self, teacher: Teacher) -> nn.Module:
        """Return the adapter, with random weights."""
        return Adapter(teacher.w_cls.shape[1], self.reduction)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the cross-entropy of the adapted features; the tower gets no gradient."""
        classifier = self.classifier(model, teacher)
        loss = batch.cross_entropy(classifier.logits(classifier.adapted(batch.zero_shot())))
        return loss, {"cross_entropy": loss}

    def classifier(self, model: nn.Module, teacher: Teacher) -> AdaptedClassifier:
        """Return the frozen tower and zero-shot head with the trained adapter between them."""
        return AdaptedClassifier(teacher.classifier, model, self.alpha)
