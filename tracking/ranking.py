"""The best and the second of each column of a table, among rows that can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tracking.columns import NOTHING, MetricColumn
from tracking.compare import Row
from tracking.metric_kinds import direction

_SAME = ("model", "data", "transform")
"""The facts that rows must share to be ranked together."""
_OUTSIDE = frozenset({"oracle", "incomplete"})
"""Marks of rows that are not ranked."""


def places(rows: Sequence[Row], columns: Sequence[MetricColumn]) -> Mapping[tuple[str, str], int]:
    """By metric and label of a row: 1 where it has the best number of its column, 2 the second.

    What counts is what is printed: equal numbers share a place. Ranked are rows with all their
    runs, among those of the same backbone, data and transform; nothing is ranked of an oracle, nor
    a metric of which neither end is better, nor a single row, nor rows that are all alike.
    """
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.arm.done and not _OUTSIDE & set(row.marks):
            facts = row.arm.done[0].facts
            alike.setdefault(tuple(str(facts.get(name)) for name in _SAME), []).append(row)
    return {
        (column.metric, label): place
        for column in columns
        for rivals in alike.values()
        for label, place in _placed(rivals, column)
    }


def _placed(rivals: Sequence[Row], column: MetricColumn) -> Iterator[tuple[str, int]]:
    sign = direction(column.metric)
    printed = {row.arm.label: column.parts(row)[0] for row in rivals}
    numbers = {label: float(text) for label, text in printed.items() if text != NOTHING}
    order = sorted(set(numbers.values()), key=lambda number: -sign * number)
    if sign and len(order) > 1:
        places = {number: place for place, number in enumerate(order[:2], 1)}
        yield from (
            (label, places[number]) for label, number in numbers.items() if number in places
        )
