"""Resume a run: load a checkpoint of `runs.folder` into model and optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carft_sweep.carft_core.models.weights import is_plain
from carft_sweep.carft_core.training.optim import Spd


class DamagedCheckpoint(ValueError):
    """A checkpoint that does not fit its run; the message says why."""


class Progress(NamedTuple):
    """How far a run has been trained."""

    step: int
    best: float
    """The best value on `id/val` so far, of the metric that picks the best epoch."""
    history: list[dict[str, Any]]
    """The reports of the run's epochs."""


def restore(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    best_by: str | None = None,
) -> Progress:
    """Load a checkpoint into model and optimiser, and return the run's progress. Raises
    DamagedCheckpoint where the checkpoint does not fit, or came after an epoch that is the best by
    the metric `best_by`, of which no weights were kept; it may be partly loaded by then."""
    try:
        model.load_state_dict(checkpoint["model"])
        saved = checkpoint["optimiser"]
        # On the CPU still; the optimiser puts them where its parameters are.
        values = [value for state in saved["state"].values() for value in state.values()]
        if not all(is_plain(value) for value in values if isinstance(value, Tensor)):
            raise ValueError("a tensor of the optimiser's state is not stored whole")
        optimiser.load_state_dict(saved)
        _check_shapes(optimiser)
        progress = Progress(checkpoint["step"], checkpoint["best"], checkpoint["history"])
        if best_by and any(e["metrics"][best_by] > progress.best for e in progress.history[1:]):
            raise ValueError("it was written under keep.result: last, without the best weights")
        return progress
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedCheckpoint(reason) from error


def _check_shapes(optimiser: torch.optim.Optimizer) -> None:
    """Raise ValueError where the state of an optimiser with fused kernels, or of Spd, has not the
    shape of its parameter: the kernels do not check, and would read beyond the end. The state of
    other optimisers has shapes of its own."""
    for group in optimiser.param_groups:
        if "fused" in group or isinstance(optimiser, Spd):
            for parameter in group["params"]:
                for name, value in optimiser.state.get(parameter, {}).items():
                    shape = () if name == "step" else parameter.shape
                    if isinstance(value, Tensor) and value.shape != shape:
                        raise ValueError(f"{name} does not fit its parameter of {[*shape]}")
