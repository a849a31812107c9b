"""DaWin: outputs mixed by how certain each of two models is of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from carft_sweep.carft_core.merges.base import Mark, Merge, MergePoint
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.two_classifiers import CalibratedClassifiers


class Dawin(Merge):
    """`(1 - l) softmax(zero-shot / T_0) + l softmax(tuned / T_1)`, with a weight l for each image,
    from the entropies H_0 and H_1 of these two distributions:

        l = (exp(-H_1) + b / w) / (exp(-H_0) + exp(-H_1) + b)

    Over all images of a split, b is the mean of the two models' std(H) / mean(H), and
    w = (mean(H_0) + mean(H_1)) / mean(H_0): an answer depends on the other images of the split. T
    makes a model's mean confidence on `id/val` its accuracy there.

    Source: Oh et al. 2025, "DaWin: Training-free Dynamic Weight Interpolation for Robust
    Adaptation" (arXiv 2410.03782), section 4, in output space, and naver-ai/dawin with
    `--ensemble_coef dynamic --offset-adjustment`. The paper interpolates weights, for three
    clusters of a split's images by l; its code has fixed temperatures for each architecture.
    """

    name: ClassVar[str] = "dawin"
    summary: ClassVar[str] = "Outputs mixed by the certainty of two models, split by split"
    mark: ClassVar[Mark | None] = "transductive"
    needs_shape: ClassVar[bool] = False

    def points(self) -> Sequence[MergePoint]:
        """Return the merge's only point."""
        return (MergePoint(self.name, 0, {}),)

    def model(self, point: MergePoint, teacher: Teacher, tuned: Classifier) -> Classifier:
        """Return a classifier that mixes the outputs of the zero-shot and the tuned model."""
        return CertaintyWeighted(teacher, tuned)


class CertaintyWeighted(CalibratedClassifiers):
    """The zero-shot and the tuned classifier, mixed by the entropies of a whole split's images."""

    def logits(self, features: Tensor) -> Tensor:
        """Return the logarithms of the mixed probabilities [N, C] of all images of a split."""
        before, after = self.log_probabilities(features)
        share = tuned_share(*(-(of.exp() * of).sum(dim=1) for of in (before, after)))[:, None]
        return torch.logaddexp((1 - share).log() + before, share.log() + after)


def tuned_share(before: Tensor, after: Tensor) -> Tensor:
    """Return the tuned model's weight [N] for each image, from both models' entropies [N]."""
    # A certain model's entropies are all 0 in float32: their spread would be 0 / 0.
    before, after = (of.clamp(min=1e-12) for of in (before, after))
    spread = [of.std(correction=min(1, len(of) - 1)) / of.mean() for of in (before, after)]
    offset = sum(spread) / 2
    balance = (before.mean() + after.mean()) / before.mean()
    ours, theirs = (-after).exp(), (-before).exp()
    return (ours + offset / balance) / (theirs + ours + offset)
