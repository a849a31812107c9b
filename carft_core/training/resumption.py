"""Resume a run: load the checkpoint that `runs.folder` wrote into model and optimiser."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import parse_json
from carft_sweep.carft_core.models.weights import is_plain
from carft_sweep.carft_core.runs.result import History
from carft_sweep.carft_core.training.optim import Schedule


class DamagedCheckpoint(ValueError):
    """A checkpoint that does not fit its run; the message says why."""


class Progress(NamedTuple):
    """How far a run is."""

    step: int
    best: float
    """The best value of `id/val` so far."""
    history: list[dict[str, Any]]
    """The reports of its epochs."""


def restore(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
) -> Progress:
    """Load a checkpoint into model, optimiser and schedule, and return the run's progress. Raises
    DamagedCheckpoint where the checkpoint does not fit; a part may be loaded by then."""
    try:
        model.load_state_dict(checkpoint["model"])
        optimiser.load_state_dict(checkpoint["optimiser"])
        _check_state(optimiser)
        step, best, history = checkpoint["step"], checkpoint["best"], checkpoint["history"]
        parse_json(json.dumps(history).encode(), "its history", History)
        reached = [report["epoch"] for report in history]
        if not 1 <= len(reached) <= schedule.epochs + 1 or reached != [*range(len(reached))]:
            raise ValueError(f"its epochs are {reached[:10]}")
        if type(step) is not int or not 0 <= step <= schedule.steps:
            raise ValueError(f"step {step!r} is none of {schedule.steps}")
        if type(best) is not float or math.isnan(best):
            raise ValueError(f"the best value is {best!r}")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, RequestError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedCheckpoint(reason) from error
    return Progress(step, best, history)


def _check_state(optimiser: torch.optim.Optimizer) -> None:
    """Raise ValueError where a tensor of the optimiser's state has another size than its parameter.
    torch's fused kernels do not check shapes. The shapes of other packages' optimisers are not
    known."""
    is_torchs = type(optimiser).__module__.startswith("torch.optim")
    if any(optimiser.defaults.keys() - group.keys() for group in optimiser.param_groups):
        raise ValueError("a group lacks a setting")
    types = [{name: type(value) for name, value in own.items()} for own in optimiser.state.values()]
    if is_torchs and any(own != types[0] for own in types):
        raise ValueError("parameters have states of several kinds")
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and not (
                is_plain(value)
                and (not is_torchs or value.numel() == 1 or value.shape == parameter.shape)
            ):
                raise ValueError(f"{name} does not fit its parameter of {list(parameter.shape)}")
