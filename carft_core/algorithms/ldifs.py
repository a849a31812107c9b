"""LDIFS: fine-tuning that keeps the features of several layers near the zero-shot model's."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import outputs_by_depth


class Ldifs(Algorithm):
    """L2 distance in feature space: CE + ldifs_weight * d.

    With h_l [B, T, C] the output of a layer l as T tokens of C channels, and n(h) the same with
    each channel of an image scaled to unit norm over the tokens, the distance to the zero-shot
    model of the same views is

        d = mean over layers, images, tokens and channels of (n(h_l(x; tuned)) - n(h_l(x; w0)))^2

    The layers are the stem and the ends of the four quarters of the blocks: of a ViT-B the first
    norm and blocks 3, 6, 9 and 12, of a ResNet or a ConvNeXt the stem and the four stages.

    Source: Mukhoti et al. 2023, "Fine-tuning can cripple your foundation model; preserving features
    may be the solution" (arXiv 2308.13320), in the form of omegafragger/ldifs_code, for whose
    distance the default weight is. LPIPS (arXiv 1801.03924), on which it builds, scales the
    channels of each token instead and sums over them: about T times as much.
    """

    name: ClassVar[str] = "ldifs"
    summary: ClassVar[str] = "Fine-tuning that keeps the features of several layers"
    uses: ClassVar[frozenset[str]] = frozenset({"layers"})

    ldifs_weight: NonNegative = 10.0
    """The weight of the distance. At 0 it is logged and trains nothing."""

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return cross-entropy plus the weighted distance. Raises RequestError for a tower whose
        layers are not known."""
        model = built(model, ImageClassifier)
        with torch.no_grad():
            _, before = outputs_by_depth(teacher.classifier.visual, batch.images)
        outputs, after = outputs_by_depth(model.visual, batch.images)
        cross_entropy = batch.cross_entropy(model.logits(F.normalize(outputs, dim=-1)))
        total, distance = penalised(
            cross_entropy,
            self.ldifs_weight,
            lambda: torch.stack([*map(_distance, after, before)]).mean(),
        )
        return total, {"cross_entropy": cross_entropy, "distance": distance}


def _distance(one: Tensor, two: Tensor) -> Tensor:
    """Return the mean squared difference of two outputs [B, T, C], each channel scaled to unit norm
    over the tokens."""
    return F.mse_loss(F.normalize(one, dim=1), F.normalize(two, dim=1))
