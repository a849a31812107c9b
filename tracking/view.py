"""How a comparison is shown: how many rows in which order, which columns, what is quoted below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tracking.columns import (
    MOST,
    NOTHING,
    MetricColumn,
    column_of,
    notes,
    other_kinds,
    setting,
    shown_columns,
    visible,
)
from tracking.compare import Comparison, Row
from tracking.metric_kinds import direction, is_fraction
from tracking.published import Quoted, footnotes

_BY_NAME = "setting"
_BY_COUNT = "n"
_TURNS = {"asc": False, "desc": True}


@dataclass(frozen=True)
class View:
    """What every form of a table shares."""

    all_alphas: bool = False
    most: int | None = MOST
    """Trials; None: all."""
    columns: tuple[str, ...] = ()
    """Headers or metric names; none: the usual ones."""
    grouped: bool = True
    """Whether a merged model stands below its arm, by its own label alone."""
    quoted: tuple[Quoted, ...] = ()
    notes: tuple[str, ...] = ()
    """More sentences below the table."""

    def rows(self, comparison: Comparison) -> tuple[Row, ...]:
        """The rows on show."""
        return visible(comparison, all_alphas=self.all_alphas, most=self.most)

    def metrics(self, comparison: Comparison) -> tuple[MetricColumn, ...]:
        """The columns on show. Raises TrackingError for one that no row has."""
        return shown_columns(comparison, self.columns)

    def name(self, comparison: Comparison, row: Row) -> str:
        """The first cell of a row, with its marks."""
        return setting(comparison, row, grouped=self.grouped)

    def told(
        self, comparison: Comparison, rows: Sequence[Row], columns: Sequence[MetricColumn]
    ) -> list[str]:
        """What the numbers and signs in these rows and columns mean."""
        said = notes(comparison, rows)
        said += other_kinds(comparison, columns)
        others = [column.header for column in columns if not is_fraction(column.metric)]
        if others:
            said.append(f"Not in percent: {', '.join(others)}.")
        return [*said, *footnotes(self.quoted), *self.notes]


def quoted_cell(column: MetricColumn, row: Quoted) -> str:
    """A number as printed elsewhere, or a dash."""
    value = row.values.get(column.metric)
    return NOTHING if value is None else column.number(value)


def ordered(comparison: Comparison, by: str) -> Comparison:
    """The same with its rows by a column, best first: `OOD mean`, `gap:desc`, `setting`, `n`.

    Behind a colon stands `asc` or `desc`; without it the better end comes first, and where neither
    end is better the larger. Rows without a number come last. Raises TrackingError for a column
    that no row has.
    """
    name, _, turn = by.rpartition(":")
    if not name or turn not in _TURNS:
        name, turn = by, ""
    if name == _BY_NAME:
        rows = sorted(comparison.rows, key=lambda row: row.arm.label, reverse=turn == "desc")
        return replace(comparison, rows=tuple(rows))
    value, down = _value(comparison, name)
    sign = -1.0 if _TURNS.get(turn, down) else 1.0

    def key(row: Row) -> float:
        found = value(row)
        return math.inf if found is None else sign * found

    return replace(comparison, rows=tuple(sorted(comparison.rows, key=key)))


def _value(comparison: Comparison, name: str) -> tuple[Callable[[Row], float | None], bool]:
    """What a row is sorted by, and whether the largest comes first."""
    if name == _BY_COUNT:
        return lambda row: float(row.n), True
    metric = column_of(comparison, name, besides=(_BY_NAME, _BY_COUNT)).metric
    return lambda row: row.metric(metric).mean, direction(metric) >= 0
