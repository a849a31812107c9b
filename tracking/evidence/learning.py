"""How settings learned: a metric by epoch, over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tracking.evidence.history import History
from tracking.rows import Row
from tracking.statistics import mean

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
