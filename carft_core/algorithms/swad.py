"""SWAD: the average of the weights of any algorithm over the valley of its validation loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from carft_sweep.carft_core.algorithms.base import Wrapper
from carft_sweep.carft_core.config.fields import NonNegative, PositiveInt
from carft_sweep.carft_core.models.averages import state_tensors
from carft_sweep.carft_core.models.classifier import Classifier, built
from carft_sweep.carft_core.models.teacher import Teacher


class Valley(nn.Module):
    """A module that trains, and means of its weights: of the last epochs, and of the valley."""

    steps: Tensor
    averaged: Tensor
    waiting: Tensor

    def __init__(self, model: nn.Module, epochs: int) -> None:
        super().__init__()
        self.model = model
        copies = [copy.deepcopy(model).requires_grad_(False) for _ in range(2 + epochs)]
        self.sums, self.average, self.recent = copies[0], copies[1], nn.ModuleList(copies[2:])
        """Sums over the epoch's steps; the valley's mean; the last epochs' means, newest last."""
        torch._foreach_zero_(_floats(self.sums))
        self.losses = nn.Buffer(torch.full((epochs,), 1e30))
        """Of the epochs in `recent`: the loss on `id/val` after each."""
        self.threshold = nn.Buffer(torch.tensor(-1.0))
        """The loss above which the valley ends; -1 before the valley and after it."""
        self.steps, self.averaged, self.waiting = map(nn.Buffer, torch.tensor([0, 0, -1]))
        """How many steps `sums` has, how many of the valley's epochs `average` has, and how many of
        them it does not have yet (-1 before the valley)."""
        self.is_last, self.is_done = map(nn.Buffer, torch.tensor([False, False]))
        """Whether the last step is taken, and then whether `average` is the result."""


class Swad(Wrapper):
    """Any algorithm, evaluated at the mean of its weights after each step of the valley.

    With l_i the loss on `id/val` after epoch i, the valley begins at the first epoch s with

        l_s = min(l_s, ..., l_(s + converge - 1))

    and ends before the first `tolerance` epochs in a row that all have a loss above
    `(1 + ratio) * mean(l_s, ..., l_(s + converge - 1))` and do not all belong to this mean; else
    with the run. Without a beginning the result is the mean over the last epoch. Epochs are to have
    the same number of steps.

    Source: Cha et al. 2021, "SWAD: Domain Generalization by Seeking Flat Minima" (arXiv
    2102.08604), algorithm 1, with the defaults of khanrc/swad; an epoch is its interval between two
    validations. That code may take epochs before s whose loss is below the threshold too, and
    count epoch s twice: for most loss curves its mean is another.
    """

    name: ClassVar[str] = "swad"
    summary: ClassVar[str] = "The average of another algorithm's weights over its loss valley"
    needs_last_epoch = True

    converge: PositiveInt = 3
    """So many epochs show that the loss has found its valley."""
    tolerance: PositiveInt = 6
    """So many epochs above the threshold end the valley."""
    ratio: NonNegative = 0.3
    """How far the threshold is above the valley's first losses."""

    @property
    def copies(self) -> int:
        """How many models it holds: what trains, two means, and the last epochs' means."""
        return (3 + max(self.converge, self.tolerance)) * self.of.copies

    def inner(self, model: nn.Module) -> nn.Module:
        return built(model, Valley).model

    def build(self, teacher: Teacher) -> Valley:
        """Return the wrapped algorithm's module, with buffers for the means of its weights."""
        return Valley(super().build(teacher), max(self.converge, self.tolerance))

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Call `after_step` of the wrapped algorithm, then add the weights to the epoch's mean."""
        super().after_step(model, step, steps)
        valley = built(model, Valley)
        torch._foreach_add_(_floats(valley.sums), _floats(valley.model))
        valley.steps += 1
        valley.is_last.fill_(step == steps - 1)

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, metrics: Mapping[str, float]) -> None:
        """Store the epoch's mean, and average the epochs known to be in the valley."""
        super().after_epoch(model, metrics)
        valley = built(model, Valley)
        valley.recent.append(mean := valley.recent.pop(0))
        mean.load_state_dict(valley.model.state_dict())
        for kept, total in zip(_floats(mean), _floats(valley.sums), strict=True):
            kept.copy_(total / valley.steps)
            total.zero_()
        valley.steps.zero_()
        valley.losses.copy_(valley.losses.roll(-1))
        valley.losses[-1] = metrics["id/val/nll"]
        if valley.waiting < 0:
            valley.average.load_state_dict(mean.state_dict())
            begun = valley.losses[-self.converge :]
            if begun.argmin() == 0:
                valley.waiting.fill_(self.converge)
                valley.threshold.copy_((1 + self.ratio) * begun.mean())
        elif valley.losses[-self.tolerance :].min() > valley.threshold:
            valley.threshold.fill_(-1)
        else:
            valley.waiting += 1
        most = 0 if valley.is_last else self.tolerance - 1
        while valley.threshold >= 0 and valley.waiting > most:
            valley.averaged += 1
            oldest = valley.recent[-int(valley.waiting)]
            share = 1 / int(valley.averaged)
            torch._foreach_lerp_(_floats(valley.average), _floats(oldest), share)
            valley.waiting -= 1
        valley.is_done.copy_(valley.is_last)

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        """Return the wrapped algorithm's classifier, with the averaged weights once the run has
        ended, before that with the trained ones."""
        valley = built(model, Valley)
        return self.of.classifier(valley.average if valley.is_done else valley.model, teacher)


def _floats(module: nn.Module) -> list[Tensor]:
    return [tensor for tensor in state_tensors(module) if tensor.is_floating_point()]
