"""What each row on show differs by from the reference, on the test split and on every shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracking.comparison.compare import Row
from tracking.comparison.runs import Arm
from tracking.comparison.statistics import Interval, mean, t_interval


@dataclass(frozen=True)
class Difference:
    """Row minus reference of one metric, paired over their common seeds; a difference of fractions.

    A side that no seed changes stands against each seed of the other.
    """

    row: Row
    metric: str
    mean: float
    ci95: Interval | None
    """None below 3 seeds."""
    n: int


def differences(
    rows: Sequence[Row], reference: Row, metrics: Sequence[str]
) -> tuple[Difference, ...]:
    """Every row but the reference itself, at every metric that both have."""
    found = []
    for row in rows:
        if row.arm.label == reference.arm.label:
            continue
        for metric in metrics:
            values = paired_values(row.arm, reference.arm, metric)
            if values:
                ci95 = t_interval(values)
                found.append(Difference(row, metric, mean(values), ci95, len(values)))
    return tuple(found)


def paired_values(ours: Arm, theirs: Arm, metric: str) -> list[float]:
    """The differences seed by seed, in the order of the seeds."""
    one, two = ours.by_seed(metric), theirs.by_seed(metric)
    if not ours.has_seeds and one:
        one = dict.fromkeys(two, next(iter(one.values())))
    if not theirs.has_seeds and two:
        two = dict.fromkeys(one, next(iter(two.values())))
    return [one[seed] - two[seed] for seed in one if seed in two]
