"""The comparison as tables of a page: what stands for each algorithm, and everything below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracking.columns import (
    NOTHING,
    MetricColumn,
    count,
    metric_columns,
    notes,
    setting,
    title,
    visible,
)
from tracking.compare import Comparison, Row
from tracking.evidence.on_show import on_show
from tracking.metric_kinds import direction

MOST = 2000
"""Trials of the full table: beyond them the page becomes large, and nobody reads."""
_SAME = ("model", "data", "transform")
"""The facts that rows must share to be ranked together."""
_OUTSIDE = frozenset({"oracle", "incomplete"})
"""Marks of rows that are not ranked."""


@dataclass(frozen=True)
class Line:
    """One row as text."""

    name: str
    cells: tuple[str, ...]
    selected: bool
    best: frozenset[int]
    """The cells that hold the best number of their column."""


@dataclass(frozen=True)
class Table:
    """What a page shows of some rows."""

    caption: str
    heads: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: str


def headline(comparison: Comparison) -> Table:
    """What stands for each algorithm, the selected setting, and their chosen merges."""
    return _table(comparison, on_show(comparison))


def everything(comparison: Comparison) -> Table | None:
    """Every setting with its chosen merges; None where that is no more than the headline."""
    rows = visible(comparison, all_alphas=False, most=MOST)
    return _table(comparison, rows) if len(rows) > len(on_show(comparison)) else None


def _table(comparison: Comparison, rows: Sequence[Row]) -> Table:
    columns = metric_columns(comparison)
    numbers = [[column.text(row) for column in columns] for row in rows]
    best = _best(rows, columns, numbers)
    lines = []
    for row, texts in zip(rows, numbers, strict=True):
        pairs = enumerate(zip(texts, best, strict=True), 1)
        marked = (place for place, (text, top) in pairs if top is not None and _mean(text) == top)
        lines.append(
            Line(
                name=setting(comparison, row, grouped=False).strip(),
                cells=(count(comparison, row), *texts),
                selected=row.selected,
                best=frozenset(marked if _ranked(row) else ()),
            )
        )
    told = notes(comparison, rows)
    if any(number is not None for number in best):
        told.append("Underlined: the best of its column.")
    heads = ("setting", "n", *(column.header for column in columns))
    return Table(title(comparison), heads, tuple(lines), " ".join(told))


def _best(
    rows: Sequence[Row], columns: Sequence[MetricColumn], numbers: Sequence[Sequence[str]]
) -> list[float | None]:
    """Of each column as printed; None where nothing can be ranked, or all are alike."""
    ranked = [(row, texts) for row, texts in zip(rows, numbers, strict=True) if _ranked(row)]
    if len({tuple(str(row.arm.done[0].facts.get(f)) for f in _SAME) for row, _ in ranked}) > 1:
        return [None] * len(columns)
    found: list[float | None] = []
    for place, column in enumerate(columns):
        sign = direction(column.metric)
        means = {mean for _, texts in ranked if (mean := _mean(texts[place])) is not None}
        differ = sign != 0 and len(means) > 1
        found.append(max(means, key=lambda mean: sign * mean) if differ else None)
    return found


def _ranked(row: Row) -> bool:
    return bool(row.arm.done) and not _OUTSIDE & set(row.marks)


def _mean(text: str) -> float | None:
    """81.2 of `81.2 ±0.4`."""
    return None if text == NOTHING else float(text.split()[0])
