"""Logit ensemble: the straight line in output space from the zero-shot model to the tuned one."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from carft_sweep.carft_core.algorithms import Algorithm
from carft_sweep.carft_core.merges.base import Line, MergePoint
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher


class LogitEnsemble(Line):
    """`(1 - alpha) * zero-shot logits + alpha * tuned logits`.

    What weight interpolation is compared with: it runs both image towers, and so costs two forward
    passes an image, and works with any tuned classifier. At alpha 0 and 1 it is one of the two.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), the
    output-space ensemble.
    """

    name: ClassVar[str] = "logit_ensemble"
    summary: ClassVar[str] = "Interpolation of the zero-shot and the tuned model's logits"

    def model(self, point: MergePoint, teacher: Teacher, tuned: Classifier) -> Classifier:
        """Return a classifier that holds both classifiers."""
        alpha = point.values["alpha"]
        if alpha == 0:
            return teacher.classifier
        return tuned if alpha == 1 else TwoClassifiers(teacher, tuned, alpha)

    def refuses(self, algorithm: Algorithm) -> str | None:
        """Return None: no weights of a common shape are needed."""
        del algorithm
        return None


class TwoClassifiers(Classifier):
    """The zero-shot and the tuned classifier side by side, whose logits are interpolated."""

    clip_features = False

    def __init__(self, teacher: Teacher, tuned: Classifier, alpha: float) -> None:
        super().__init__()
        self.zero_shot, self.tuned, self.alpha = teacher.classifier, tuned, alpha
        self.width = teacher.w_cls.shape[1]

    @property
    def parts(self) -> tuple[Classifier, ...]:
        """The two classifiers, each of which computes its features once for every alpha."""
        return self.zero_shot, self.tuned

    def features(self, images: Tensor) -> Tensor:
        """Return the zero-shot model's features [B, d], then the tuned model's, in one row for each
        image."""
        return torch.cat([self.zero_shot.features(images), self.tuned.features(images)], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """Return the interpolated logits [B, C] of such features."""
        before = self.zero_shot.logits(features[:, : self.width])
        after = self.tuned.logits(features[:, self.width :])
        return (1 - self.alpha) * before + self.alpha * after
