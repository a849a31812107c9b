"""What was spent: time, throughput and epochs of settings, and runs of algorithms by their end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracking.compare import Comparison
from tracking.evidence.history import History
from tracking.rows import Row
from tracking.statistics import mean

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
