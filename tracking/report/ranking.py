"""Which rows are the best of a column, and which of them the seeds do not tell apart."""

from __future__ import annotations

from collections.abc import Callable

from carft_sweep.tracking.comparison.compare import Comparison, Row
from carft_sweep.tracking.comparison.metrics import direction
from carft_sweep.tracking.comparison.statistics import Interval

MEANING = (
    "the best of its column in the whole sweep, and every row that the 95 % interval of the paired "
    "difference over seeds does not tell apart from it; no mark where that is every row."
)
"""What a mark says, behind the word for how it looks."""
MEANING_OF_CHOSEN = MEANING.replace("in the whole sweep", "among the chosen runs")
"""Where a condition has chosen runs."""


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
        means = ((row, row.arm.mean(metric)) for row in together)
        rows = [(row, mean) for row, mean in means if mean is not None]
        if not rows:
            continue
        top, highest = max(rows, key=lambda item: sign * item[1])
        printed, interval = number(highest), _interval(top, metric)
        if interval is None:
            continue  # nothing is told apart from it
        level = [
            row.arm.label
            for row, mean in rows
            if not _told_apart(comparison, row, top, interval, metric) or number(mean) == printed
        ]
        if len(level) < len(rows):
            best.update(level)
    return frozenset(best)


def _told_apart(
    comparison: Comparison, row: Row, top: Row, interval: Interval, metric: str
) -> bool:
    """Whether the interval of the paired difference excludes 0; that of the best row is there.

    Where the difference has none (fewer than three common seeds, no spread), whether the rows' own
    intervals lie apart.
    """
    own = _interval(row, metric)
    if own is None:
        return False
    test = comparison.pair(row.arm, top.arm).test(metric)
    if test is not None and test.ci95 is not None:
        return not test.ci95.low <= 0 <= test.ci95.high
    return own.high < interval.low or interval.high < own.low


def _interval(row: Row, metric: str) -> Interval | None:
    """Return the interval of a row; of a model that no seed changes its value alone."""
    estimate = row.metric(metric)
    if estimate.mean is not None and not row.arm.has_seeds:
        return Interval(estimate.mean, estimate.mean)
    return estimate.ci95
