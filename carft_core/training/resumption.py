"""Resume a run: load the checkpoint that `runs.folder` wrote into model and optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carft_sweep.carft_core.models.weights import is_plain


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
    *,
    best_by: str | None = None,
) -> Progress:
    """Load a checkpoint into model and optimiser, and return the run's progress. Raises
    DamagedCheckpoint where the checkpoint does not fit, or is behind an epoch that is the best by
    the metric `best_by`, of which no weights were kept; a part may be loaded by then."""
    try:
        model.load_state_dict(checkpoint["model"])
        optimiser.load_state_dict(checkpoint["optimiser"])
        _check_state(optimiser)
        progress = Progress(checkpoint["step"], checkpoint["best"], checkpoint["history"])
        if best_by and any(it["metrics"][best_by] > progress.best for it in progress.history[1:]):
            raise ValueError("it was written under keep.result: last, without the best weights")
        return progress
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedCheckpoint(reason) from error


def _check_state(optimiser: torch.optim.Optimizer) -> None:
    """Raise ValueError where a tensor of the optimiser's state has another size than its parameter.
    torch's fused kernels do not check shapes. The shapes of other packages' optimisers are not
    known."""
    is_torchs = type(optimiser).__module__.startswith("torch.optim")
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and not (
                is_plain(value)
                and (not is_torchs or value.numel() == 1 or value.shape == parameter.shape)
            ):
                raise ValueError(f"{name} does not fit its parameter of {list(parameter.shape)}")
