"""LwF: fine-tuning that keeps the zero-shot model's distribution over the classes."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from carft_sweep import ALGORITHMS, Algorithm, Batch, Loss, Teacher


@ALGORITHMS.register
class Lwf(Algorithm):
    """Source: Li and Hoiem 2016, arXiv 1606.09282, of CLIP's own classes."""

    name: ClassVar[str] = "lwf"
    summary: ClassVar[str] = "Fine-tuning that keeps the zero-shot model's class probabilities"

    weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 2.0

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        logits = model(batch.images)
        with torch.no_grad():
            frozen = teacher.classifier.logits(batch.zero_shot())
        cross_entropy = batch.cross_entropy(logits)
        p = F.softmax(frozen / self.temperature, dim=1)
        distillation = F.cross_entropy(logits / self.temperature, p)
        total = cross_entropy + self.weight * distillation
        return total, {"cross_entropy": cross_entropy, "distillation": distillation}
