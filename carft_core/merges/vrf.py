"""VRF: each image's own mix of the zero-shot and the tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.config.fields import Positive
from carft_sweep.carft_core.merges.base import Mark, Merge, MergePoint
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.two_classifiers import CalibratedClassifiers

ROWS = 256
"""Images whose logits, or whose distances to all failures, are held at once."""


class Vrf(Merge):
    """`(1 - w) softmax(zero-shot / T_0) + w softmax(tuned / T_1)` with a weight for each image,

        w = sigmoid(-(d - shift) / width)

    of its distance d to zero-shot failures: the training images that the tuned model classifies
    right and the zero-shot model wrong. With the tuned model's unit-norm features, d is the
    squared Euclidean distance to the k-th nearest (with `squared: false` the distance itself), k =
    `neighbours` of their number, at least 1. Without failures w is 0. T makes a model's mean
    confidence on `id/val` its accuracy there.

    Source: Zhu et al. 2024, "Robust Fine-tuning of Zero-shot Models via Variance Reduction" (arXiv
    2411.06966), section 4, and BeierZhu/VRF. `shift` and `width` are those of its code, which
    squares the distances. That code takes `1000 / N` of the failures among N images, fits T on the
    ID test set, and leaves out the classes that a split lacks before it mixes.
    """

    name: ClassVar[str] = "vrf"
    summary: ClassVar[str] = "Outputs mixed by each image's distance to zero-shot failures"
    mark: ClassVar[Mark | None] = "sample-wise"
    needs_shape: ClassVar[bool] = False

    shift: Annotated[float, Field(allow_inf_nan=False)] = 1.5
    """The distance at which both models count the same; the paper's a."""
    width: Positive = 0.6
    """How wide the range of distances is in which the weight changes; the paper's b."""
    neighbours: Annotated[float, Field(gt=0, le=1)] = 0.001
    """Which neighbour's distance counts, as a share of the failures."""
    squared: bool = True
    """Whether the distance is the squared one, as in the authors' code."""

    def points(self) -> Sequence[MergePoint]:
        """Return the merge's only point."""
        return (MergePoint(self.name, 0, {}),)

    def model(self, point: MergePoint, teacher: Teacher, tuned: Classifier) -> Classifier:
        """Return a classifier that mixes both models' outputs and holds the features of the
        failures, which take a pass of the tuned model over the training images."""
        return DistanceWeighted(self, teacher, tuned)


class DistanceWeighted(CalibratedClassifiers):
    """The zero-shot and the tuned classifier, mixed by the distance to failures."""

    def __init__(self, vrf: Vrf, teacher: Teacher, tuned: Classifier) -> None:
        super().__init__(teacher, tuned)
        self.vrf = vrf
        (features,) = teacher.encode([tuned], "train")
        both = torch.cat([teacher.features("train").to(features.device), features], dim=1)
        labels = teacher.splits["train"].labels.to(features.device)
        with torch.no_grad():
            parts = map(self.both_logits, both.split(ROWS))
            guesses = [torch.stack(pair).argmax(dim=2) for pair in parts]
        before, after = torch.cat(guesses, dim=1)
        fails = (before != labels) & (after == labels)
        self.failures = nn.Buffer(F.normalize(features[fails], dim=1).clone())

    def logits(self, features: Tensor) -> Tensor:
        """Return the logarithms of the mixed probabilities [B, C]."""
        before, after = self.log_probabilities(features)
        if not len(self.failures):
            return before
        distances = self.distances(F.normalize(features[:, self.width :], dim=1))
        nearness = ((self.vrf.shift - distances) / self.vrf.width)[:, None]
        return torch.logaddexp(F.logsigmoid(-nearness) + before, F.logsigmoid(nearness) + after)

    def distances(self, features: Tensor) -> Tensor:
        """Return the distance [B] of unit-norm features [B, d] to the k-th nearest failure."""
        nearest = max(1, round(self.vrf.neighbours * len(self.failures)))
        parts = features.split(ROWS)
        cosines = [(part @ self.failures.T).topk(nearest).values[:, -1] for part in parts]
        squared = (2 - 2 * torch.cat(cosines)).clamp(min=0)
        return squared if self.vrf.squared else squared.sqrt()
