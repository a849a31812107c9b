"""Logit ensemble: the straight line in output space from the zero-shot model to the tuned one."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from carft_sweep.carft_core.merges.base import Line, MergePoint
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.two_classifiers import TwoClassifiers


class LogitEnsemble(Line):
    """`(1 - alpha) * zero-shot logits + alpha * tuned logits`.

    What weight interpolation is compared with: it runs both image towers, and so costs two forward
    passes an image, and works with any tuned classifier. At alpha 0 and 1 it is one of the two.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), the
    output-space ensemble.
    """

    name: ClassVar[str] = "logit_ensemble"
    summary: ClassVar[str] = "Interpolation of the zero-shot and the tuned model's logits"
    needs_shape: ClassVar[bool] = False

    def model(self, point: MergePoint, teacher: Teacher, tuned: Classifier) -> Classifier:
        """Return a classifier that interpolates the logits of the zero-shot and the tuned model."""
        alpha = point.values["alpha"]
        if alpha == 0:
            return teacher.classifier
        return tuned if alpha == 1 else Interpolated(teacher, tuned, alpha)


class Interpolated(TwoClassifiers):
    """The zero-shot and the tuned classifier, whose logits are interpolated."""

    def __init__(self, teacher: Teacher, tuned: Classifier, alpha: float) -> None:
        super().__init__(teacher, tuned)
        self.alpha = alpha

    def logits(self, features: Tensor) -> Tensor:
        """Return the interpolated logits [B, C], from the features of both classifiers."""
        before, after = self.both_logits(features)
        return (1 - self.alpha) * before + self.alpha * after
