"""Histories, learning curves and cost of runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tracking.comparison.compare import Comparison, Row
from tracking.comparison.runs import RunRecord
from tracking.comparison.statistics import mean


@dataclass(frozen=True)
class History:
    """The epochs of one run; epoch 0 is the model before training."""

    seconds: float
    """Of training, without evaluation."""
    metrics: Sequence[Mapping[str, float]]
    """By epoch; finite numbers only."""

    @property
    def epochs(self) -> int:
        """How many were trained."""
        return len(self.metrics) - 1

    def values(self, metric: str) -> dict[int, float]:
        """A metric by epoch, where it was measured."""
        return {epoch: found[metric] for epoch, found in enumerate(self.metrics) if metric in found}


def read_history(run: RunRecord) -> History | None:
    """None where the run has no folder here, or nothing that can be read in it."""
    if run.folder is None:
        return None
    try:
        told = json.loads((run.folder / "history.json").read_text())
        epochs = [_finite(item["metrics"]) for item in told]
        seconds = sum(float(item["seconds"]) for item in told)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return History(seconds, epochs) if epochs else None


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


Standing = Literal["shown", "best", "pruned"]


class Epoch(NamedTuple):
    """The mean over seeds and both ends of their range."""

    epoch: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """One metric of one setting."""

    row: Row
    metric: str
    standing: Standing
    """`shown` beside others in every chart, among the `best`, or `pruned`."""
    epochs: tuple[Epoch, ...]


def learning_curve(
    row: Row, metric: str, standing: Standing, histories: Sequence[History]
) -> LearningCurve | None:
    """At the epochs that every seed has; None where there are none."""
    curves = [history.values(metric) for history in histories]
    shared = set.intersection(*map(set, curves)) if curves else set()
    by_epoch = [(epoch, [curve[epoch] for curve in curves]) for epoch in sorted(shared)]
    if not by_epoch:
        return None
    epochs = (Epoch(epoch, mean(v), min(v), max(v)) for epoch, v in by_epoch)
    return LearningCurve(row, metric, standing, tuple(epochs))


SPEED = "system/images_per_s"


@dataclass(frozen=True)
class Cost:
    """Of one trained setting."""

    row: Row
    seconds: tuple[float, ...]
    """Of training, by run."""
    images_per_s: float | None
    """The mean over epochs and runs."""
    epochs: int
    """The most that a run was trained."""


@dataclass(frozen=True)
class Runs:
    """How many runs of an algorithm ended in one way."""

    algorithm: str
    state: str
    count: int


def cost(row: Row, histories: Sequence[History]) -> Cost | None:
    """None where no run tells."""
    if not histories:
        return None
    speeds = [speed for history in histories for speed in history.values(SPEED).values()]
    return Cost(
        row,
        tuple(history.seconds for history in histories),
        mean(speeds) if speeds else None,
        max(history.epochs for history in histories),
    )


def runs(comparison: Comparison) -> Iterable[Runs]:
    """Of every algorithm that trains, in the order of the table; of several tasks those of all."""
    counts: dict[str, Counter[str]] = {}
    parts = comparison.tasks.values() if comparison.tasks else (comparison,)
    for row in (row for part in parts for row in part.rows):
        if row.arm.merge is None and row.arm.trains:
            counts.setdefault(row.arm.algorithm, Counter()).update(row.arm.states)
    for algorithm, states in counts.items():
        for state, count in states.items():
            yield Runs(algorithm, state, count)
