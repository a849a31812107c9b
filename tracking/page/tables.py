"""The comparison as tables of a page: what stands for each algorithm, and everything below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tracking.columns import MetricColumn, count, metric_columns, notes, setting, title, visible
from tracking.compare import Comparison, Row
from tracking.evidence.on_show import on_show
from tracking.ranking import places

MOST = 2000
"""Trials of the full table: beyond them the page becomes large, and nobody reads."""


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
    return of_rows(comparison, on_show(comparison))


def everything(comparison: Comparison) -> Table | None:
    """Every setting with its chosen merges; None where that is no more than the headline."""
    rows = visible(comparison, all_alphas=False, most=MOST)
    return of_rows(comparison, rows) if len(rows) > len(on_show(comparison)) else None


def tasks(comparison: Comparison) -> Table | None:
    """A column for each task and their average; None where there is one task only."""
    table = comparison.protocol
    if table is None:
        return None
    lines = [
        Line(name, tuple(cell.text() for cell in cells), selected=False, best=frozenset())
        for name, cells in table.rows()
    ]
    return Table(title(comparison), tuple(table.heads()), tuple(lines), table.caption)


def of_rows(comparison: Comparison, rows: Sequence[Row]) -> Table:
    """These rows with every usual column, and in each the best of them."""
    columns = metric_columns(comparison)
    found = places(rows, columns)
    lines = [_line(comparison, row, columns, found) for row in rows]
    told = notes(comparison, rows)
    if found:
        told.append("Underlined: the best of its column, among rows of one backbone and data.")
    heads = ("setting", "n", *(column.header for column in columns))
    return Table(title(comparison), heads, tuple(lines), " ".join(told))


def _line(
    comparison: Comparison,
    row: Row,
    columns: Sequence[MetricColumn],
    found: Mapping[tuple[str, str], int],
) -> Line:
    best = [found.get((column.metric, row.arm.label)) == 1 for column in columns]
    return Line(
        name=setting(comparison, row, grouped=False).strip(),
        cells=(count(comparison, row), *(column.text(row) for column in columns)),
        selected=row.selected,
        best=frozenset(cell for cell, is_best in enumerate(best, 1) if is_best),
    )
