"""LP-FT: fine-tuning from the head of a linear probe."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.training.logistic_regression import Probe


class LpFt(Probe, Algorithm):
    """Fine-tuning of image tower and head together, from the solution of a linear probe.

    A head that fits the features from the first step on leaves them less distorted than one that
    starts elsewhere. Epoch 0 is the probe: `linear_probe` with the same fields. The features for
    the probe are of fixed views.

    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution" (arXiv 2202.10054), section 3.4. Theirs picks the probe's `C` among 100
    values on validation data, with a bias, and fine-tunes by SGD.
    """

    name: ClassVar[str] = "lp_ft"
    summary: ClassVar[str] = "Fine-tuning from the head of a linear probe"
    starts_at_zero_shot: ClassVar[bool] = False

    def start(self, model: nn.Module, teacher: Teacher) -> None:
        """Set the head to the solution of the linear probe."""
        model = built(model, ImageClassifier)
        labels = teacher.splits["train"].labels
        self.fit(model.head, teacher.classifier.head, teacher.features("train"), labels)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the cross-entropy of the classifier's logits, CE(V f, y)."""
        loss = batch.cross_entropy(model(batch.images))
        return loss, {"cross_entropy": loss}
