"""CLIPood: fine-tuning towards fixed texts with a margin by their similarity, averaged."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss
from carft_sweep.carft_core.config.fields import NonNegative, Positive
from carft_sweep.carft_core.models.averages import Averaged, beta_decay
from carft_sweep.carft_core.models.classifier import Classifier, ImageClassifier, built
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.training.optim import Group, OptimConfig, decay_groups


class ClipOod(Algorithm):
    """Fine-tuning of the image tower with the margin metric softmax, and a Beta moving average.

    With f an image's unit-norm feature, t_c the class texts' and s CLIP's logit scale, neither of
    which trains, the loss is the cross-entropy of the logits

        s (f' t_c + margin (1 - t_y' t_c))

    so that a class has a larger margin, the less its text is like the label's. The result is the
    average of the weights after t = 0, 1, ..., T of T steps, weighted by the density of Beta(beta,
    beta) at (t + 1/2) / (T + 1).

    Source: Shu et al. 2023, "CLIPood: Generalizing CLIP to Out-of-Distributions" (arXiv
    2302.00864), equations of MMS and BMA, and thuml/CLIPood. There the rate is 5e-6 without
    warm-up, gradients are not clipped, and the texts are of one template.
    """

    name: ClassVar[str] = "clipood"
    summary: ClassVar[str] = "Fine-tuning towards fixed texts with margins, averaged over the run"
    copies: ClassVar[int] = 2

    margin: NonNegative = 0.3
    """The weight of the margins, the paper's lambda."""
    beta: Positive = 0.5
    """The Beta distribution's parameter: below 1 the average is mostly of the zero-shot and the
    last weights, at 1 of all equally."""

    def build(self, teacher: Teacher) -> Averaged:
        """Return a trainable copy of the zero-shot classifier, and its average."""
        return Averaged(teacher.new_classifier())

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        """Return the image tower's parameters."""
        classifier = built(built(model, Averaged).model, ImageClassifier)
        return decay_groups(classifier.visual.named_parameters(), optim)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the cross-entropy with margins; the logged `cross_entropy` has no margins."""
        classifier = built(built(model, Averaged).model, ImageClassifier)
        features = classifier.features(batch.images)
        # Without the constant `margin * s`, which is the same for each class.
        shifted = features - self.margin * teacher.w_cls[batch.labels]
        plain = batch.cross_entropy(classifier.logits(features.detach()))
        return batch.cross_entropy(classifier.logits(shifted)), {"cross_entropy": plain}

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Update the Beta moving average of the weights."""
        built(model, Averaged).update(beta_decay(step, steps, self.beta))

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        """Return the classifier with the averaged weights."""
        return super().classifier(built(model, Averaged).average, teacher)
