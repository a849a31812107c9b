"""L2-SP: fine-tuning with a penalty on the distance to the zero-shot weights."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from carft_sweep import ALGORITHMS, Algorithm, Batch, Loss, Teacher


@ALGORITHMS.register
class L2Sp(Algorithm):
    """Source: Li et al. 2018, arXiv 1802.01483."""

    name: ClassVar[str] = "l2_sp"
    summary: ClassVar[str] = "Fine-tuning with a penalty on the distance to the zero-shot weights"

    alpha: Annotated[float, Field(ge=0)] = 0.01

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        cross_entropy = batch.cross_entropy(model(batch.images))
        start = dict(teacher.classifier.named_parameters())
        distances = [
            (parameter - start[name]).square().sum()
            for name, parameter in model.named_parameters()
            if name.startswith("visual.")
        ]
        distance = torch.stack(distances).sum()
        total = cross_entropy + self.alpha * distance
        return total, {"cross_entropy": cross_entropy, "distance": distance}
