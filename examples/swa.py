"""SWA: the result is the mean of the weights after each step from `begin` on."""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from carft_sweep import (
    ALGORITHMS,
    Batch,
    Classifier,
    FineTune,
    Group,
    ImageClassifier,
    Loss,
    OptimConfig,
    Teacher,
)


class Averaged(nn.Module):
    """The classifier that trains, and the mean of what it was."""

    def __init__(self, current: ImageClassifier) -> None:
        super().__init__()
        self.current, self.mean = current, copy.deepcopy(current)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@ALGORITHMS.register
class Swa(FineTune):
    """Source: Izmailov et al. 2018, arXiv 1803.05407."""

    name: ClassVar[str] = "swa"
    summary: ClassVar[str] = "The mean of the weights over the end of a run"

    begin: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def build(self, teacher: Teacher) -> Averaged:
        return Averaged(teacher.new_classifier())

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        return super().groups(model.current, optim)  # the mean is in no group, and so frozen

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        return super().loss(model.current, batch, teacher)

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        if step >= self.begin * steps:
            model.count += 1
            for mean, now in zip(model.mean.parameters(), model.current.parameters(), strict=True):
                mean += (now - mean) / model.count

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        return model.mean if model.count else model.current
