"""Which rows are the best of a column, and which of them the seeds do not tell apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tracking.comparison.compare import Comparison
from tracking.comparison.metrics import direction
from tracking.comparison.runs import Arm
from tracking.comparison.statistics import Estimate, Interval

MEANING = (
    "the best of its column in the whole sweep, and every row that the 95 % interval of the paired "
    "difference over seeds does not tell apart from it; no mark where that is every row."
)
"""What a mark says, behind the word for how it looks."""


def best_rows(
    comparison: Comparison, metric: str, number: Callable[[float], str]
) -> frozenset[str]:
    """Return the labels of the rows that share the best of a metric.

    These are the row with the best mean, those that print the same `number`, and those that are
    not told apart from it; none where that is every row, and none of a metric that has no good
    side. Ranked are all rows of the comparison, whichever of them a table shows: settings with all
    their runs, unmerged and at the selected label of each merge, among those of the same backbone,
    data and transform. Nothing is ranked of an oracle.
    """
    sign = direction(metric)
    best: set[str] = set()
    for together in comparison.ranked if sign else ():
        estimates = ((row.arm, row.metric(metric)) for row in together)
        rows = [
            _Ranked(arm, estimate.mean, _interval(arm, estimate))
            for arm, estimate in estimates
            if estimate.mean is not None
        ]
        if not rows:
            continue
        top = max(rows, key=lambda row: sign * row.mean)
        printed = number(top.mean)
        level = [
            row.arm.label
            for row in rows
            if not _told_apart(comparison, row, top, metric) or number(row.mean) == printed
        ]
        if len(level) < len(rows):
            best.update(level)
    return frozenset(best)


class _Ranked(NamedTuple):
    """A row that is ranked, with its own interval."""

    arm: Arm
    mean: float
    ci95: Interval | None


def _told_apart(comparison: Comparison, row: _Ranked, top: _Ranked, metric: str) -> bool:
    """Whether the interval of the paired difference excludes 0.

    Where the difference has none (fewer than three common seeds, no spread), whether the rows' own
    intervals lie apart.
    """
    if row.ci95 is None or top.ci95 is None:
        return False
    test = comparison.pair(row.arm, top.arm).test(metric)
    if test is not None and test.ci95 is not None:
        return not test.ci95.low <= 0 <= test.ci95.high
    return row.ci95.high < top.ci95.low or top.ci95.high < row.ci95.low


def _interval(arm: Arm, estimate: Estimate) -> Interval | None:
    """Return the interval of a row; of a model that no seed changes its value alone."""
    if estimate.mean is not None and not arm.has_seeds:
        return Interval(estimate.mean, estimate.mean)
    return estimate.ci95
