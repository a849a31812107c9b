"""CORAL: fine-tuning that brings mean and covariance of the domains' features together."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.teacher import Teacher


class Coral(Algorithm):
    """Fine-tuning with DomainBed's CORAL: CE + coral_weight * the domains' distance.

    With m_i [d] and C_i [d, d] the mean and covariance (over n_i - 1) of the features of the
    images of domain i in a batch, the distance is the mean over pairs of domains i < j of

        mean((m_i - m_j)^2) + mean((C_i - C_j)^2)

    The features are the image tower's outputs before they are normalised, as those of DomainBed's
    networks are: of unit-norm ones the distance is a thousand times smaller, and a weight of 1 does
    nothing. A domain with fewer than two images in a batch has no covariance and is left out.

    Source: Sun and Saenko 2016, "Deep CORAL" (arXiv 1607.01719), equation 1, between two domains
    and of covariances alone; Gulrajani and Lopez-Paz 2021, "In Search of Lost Domain
    Generalization" (arXiv 2007.01434), whose code has the form above.
    """

    name: ClassVar[str] = "coral"
    summary: ClassVar[str] = "Fine-tuning that aligns mean and covariance of the domains' features"
    couples_items: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"domains"})

    coral_weight: NonNegative = 1.0
    """The weight of the distance, DomainBed's `mmd_gamma`, drawn there from 0.1 to 10. At 0 it is
    logged and trains nothing."""

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return cross-entropy plus the weighted distance of the batch. Raises ValueError for a
        batch without domains."""
        model = built(model, ImageClassifier)
        if batch.domain is None:
            raise ValueError("coral needs the domain of each image")
        outputs = batch.in_parts(model.embed, batch.images)
        cross_entropy = batch.cross_entropy(model.logits(F.normalize(outputs, dim=-1)))
        domain = batch.domain
        total, distance = penalised(
            cross_entropy, self.coral_weight, lambda: distance_of_domains(outputs, domain)
        )
        return total, {"cross_entropy": cross_entropy, "coral": distance}

    def warnings(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """Warn when no batch held two images each of two domains."""
        distances = [metrics["train/coral"] for metrics in history[1:]]
        if not distances or any(distances):
            return []
        return [
            "no batch held two images each of two domains, so this run is plain fine-tuning; with "
            "data.balanced: true every batch holds optim.batch_size images of each"
        ]


def distance_of_domains(features: Tensor, domain: Tensor) -> Tensor:
    """Return the mean distance over pairs of domains, from features [B, d] and the number [B] of
    each feature's domain; 0 unless two domains have two features each."""
    sizes = Counter(domain.tolist())  # waits for a GPU, and nothing below does
    by_domain = features[domain.argsort(stable=True)].split([sizes[i] for i in sorted(sizes)])
    with torch.autocast(features.device.type, enabled=False):
        moments = [_moments(rows) for rows in by_domain if len(rows) > 1]
        distances = [
            (one[0] - two[0]).square().mean() + (one[1] - two[1]).square().mean()
            for one, two in itertools.combinations(moments, 2)
        ]
    return torch.stack(distances).mean() if distances else features.new_zeros(())


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [d] and covariance [d, d] of rows [N, d]. A GPU is not waited for."""
    mean = rows.mean(0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)
