"""The optimiser, its learning rate over a run, and how long a run trains."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from carft_core.data import Split
from carft_core.fields import (
    NonNegative,
    Positive,
    PositiveInt,
    Section,
)


class OptimConfig(Section):
    """AdamW with warm-up and cosine decay. The defaults are WiSE-FT's recipe at CAR-FT's rate."""

    lr: Positive = 1e-5
    weight_decay: NonNegative = 0.1
    decay_norms_and_biases: bool = True
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    steps_per_epoch: PositiveInt | None = None
    """With `steps`: how many are an epoch, behind which `id/val` is measured; else a pass is."""
    batch_size: PositiveInt = 512
    micro_batch: PositiveInt | None = None
    warmup: NonNegative = 0.1
    """Below 1 the fraction of all steps, from 1 on a number of steps."""
    clip: Positive | None = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_norm: Literal["frozen", "train"] = "frozen"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if self.steps is None and self.steps_per_epoch is not None:
            raise ValueError("steps_per_epoch needs steps, the number of all")
        return self


def adamw(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the named parameters that require a gradient.

    WiSE-FT decays all of them; with `decay_norms_and_biases` false, vectors (norms, biases) and
    scalars are left out of the decay.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in parameters:
        if parameter.requires_grad:
            vector = parameter.ndim <= 1
            (plain if vector and not config.decay_norms_and_biases else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """The rate of the 0-based `step` of `steps`: linear warm-up, then half a cosine to 0.

    Source: WiSE-FT's `cosine_lr`: `peak * (step + 1) / warmup`, then
    `peak * (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def warmup_steps(warmup: float, steps: int) -> int:
    """`optim.warmup` in steps: a fraction of all below 1, else a number; under `steps`."""
    asked = round(warmup * steps) if warmup < 1 else round(warmup)
    return min(asked, steps - 1)


@dataclass(frozen=True)
class Schedule:
    """Steps of the optimiser, counted from 0; epochs from 1."""

    steps: int
    per_epoch: int

    @property
    def epochs(self) -> int:
        """How many there are; the last may be shorter."""
        return math.ceil(self.steps / self.per_epoch)

    def of_epoch(self, epoch: int) -> range:
        """The steps of one epoch."""
        return range((epoch - 1) * self.per_epoch, min(epoch * self.per_epoch, self.steps))


def schedule_of(optim: OptimConfig, train: Split, *, balanced: bool) -> Schedule:
    """That of a run on `train`: an epoch is `optim.steps_per_epoch`, else as many steps as a pass
    takes; with `data.balanced`, as many as show as many images as a pass."""
    groups = len(set(train.groups)) if balanced and train.groups else 1
    per_epoch = optim.steps_per_epoch or math.ceil(len(train) / (optim.batch_size * groups))
    return Schedule(optim.steps or (optim.epochs or 1) * per_epoch, per_epoch)
