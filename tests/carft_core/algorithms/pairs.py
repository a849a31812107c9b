"""What the tests of contrastive methods share: a module with an average, and numpy's formulas."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from carft_sweep.carft_core.algorithms import Algorithm, Batch
from carft_sweep.carft_core.models.classifier import built
from carft_sweep.carft_core.models.contrastive import ContrastiveClip
from carft_sweep.carft_core.models.teacher import Teacher

Array = NDArray[np.float64]


def walked(algorithm: Algorithm, teacher: Teacher) -> nn.Module:
    """A module whose weights, and whose average if it has one, have left the teacher's."""
    model, generator = algorithm.build(teacher), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def features(model: nn.Module, batch: Batch) -> tuple[float, Array, Array]:
    """A CLIP's scale, and its features of the images and of the captions that `loss_of` draws."""
    clip = built(model, ContrastiveClip)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        images, texts = (rows.double().numpy() for rows in batch.pairs(clip))
    return float(clip.scale), images, texts


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(target: Array, logits: Array) -> float:
    """Of each row to the softmax of the target's row, on average."""
    return float(-(np.exp(log_softmax(target)) * log_softmax(logits)).sum(axis=1).mean())
