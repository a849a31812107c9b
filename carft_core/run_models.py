"""The models of a run: its own, and what its merges make of it and the zero-shot model."""

from __future__ import annotations

from pathlib import Path

from carft_core.checkpoint import load_weights
from carft_core.config import TrialConfig
from carft_core.errors import RequestError
from carft_core.merges import Merge, MergePoint, State

UNMERGED = "unmerged"
"""The label of the run's own model."""
Model = tuple[Merge, MergePoint] | None
"""A point of a merge; None is the run's own model."""


def models_of(config: TrialConfig) -> dict[str, Model]:
    """By label: the run's own model, then each point of each merge.

    A merge with the zero-shot model has nothing to say of an algorithm that trains nothing.
    """
    models: dict[str, Model] = {UNMERGED: None}
    if config.algorithm.trains:
        for merge in config.merges:
            models |= {point.label: (merge, point) for point in merge.points()}
    return models


def tuned_state(file: Path, config: TrialConfig, zero_shot: State) -> State:
    """The weights that training came to, kept in `file`; `zero_shot` where nothing is trained.

    Raises RequestError when they are not kept.
    """
    if not config.algorithm.trains:
        return zero_shot
    if not file.exists():
        raise RequestError(
            f"the weights of the run in {file.parents[1]} are not kept (keep.weights: false); "
            "train it again with keep.weights: true"
        )
    return load_weights(file)


def model_state(model: Model, zero_shot: State, tuned: State) -> State:
    """The weights of one of a run's models, as a classifier's state dict."""
    if model is None:
        return tuned
    merge, point = model
    return merge.state(point, zero_shot, tuned)
