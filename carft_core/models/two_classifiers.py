"""Two classifiers side by side: what a merge in output space is made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher


class TwoClassifiers(Classifier):
    """The zero-shot and the tuned classifier; a subclass says how `logits` follow from both."""

    clip_features = False

    def __init__(self, teacher: Teacher, tuned: Classifier) -> None:
        super().__init__()
        self.zero_shot, self.tuned = teacher.classifier, tuned
        self.width = teacher.w_cls.shape[1]

    @property
    def parts(self) -> tuple[Classifier, ...]:
        """The two classifiers, each of which computes its features once for every point."""
        return self.zero_shot, self.tuned

    def features(self, images: Tensor) -> Tensor:
        """Return both models' features side by side, the zero-shot model's first: [B, 2 d]."""
        return torch.cat([self.zero_shot.features(images), self.tuned.features(images)], dim=1)

    def both_logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the zero-shot and the tuned logits [B, C] from what `features` returns."""
        before = self.zero_shot.logits(features[:, : self.width])
        return before, self.tuned.logits(features[:, self.width :])


class CalibratedClassifiers(TwoClassifiers):
    """The zero-shot and the tuned classifier, the logits of each divided by its `temperature()`."""

    def __init__(self, teacher: Teacher, tuned: Classifier) -> None:
        super().__init__(teacher, tuned)
        self.temperatures = [temperature(part, teacher) for part in self.parts]

    def log_probabilities(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return the logarithms of both classifiers' probabilities [B, C]."""
        logits = zip(self.both_logits(features), self.temperatures, strict=True)
        return tuple(F.log_softmax(of / scale, dim=1) for of, scale in logits)


def temperature(classifier: Classifier, teacher: Teacher) -> float:
    """Return the temperature, from 0.1 to 10, that divides the logits so that the classifier's mean
    confidence on `id/val` comes nearest to its accuracy there."""
    (features,) = teacher.encode([classifier], "id/val")
    with torch.no_grad():
        logits = classifier.logits(features)
    labels = teacher.splits["id/val"].labels.to(logits.device)
    accuracy = float((logits.argmax(dim=1) == labels).float().mean())
    low, high = 0.1, 10.0
    for _ in range(30):
        middle = (low * high) ** 0.5
        confidence = float(F.softmax(logits / middle, dim=1).amax(dim=1).mean())
        low, high = (middle, high) if confidence > accuracy else (low, middle)
    return low
