"""The table of a comparison: rows, columns, marks, notes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tracking.comparison.compare import Comparison, Row, shown_rows
from tracking.comparison.metrics import (
    BENCHMARK,
    NOUNS,
    TITLES,
    TOP1,
    capitalised,
    direction,
    is_fraction,
    kind_of,
    shifts,
)
from tracking.comparison.verdict import GAIN
from tracking.errors import TrackingError, unknown_name
from tracking.report.published import Quoted, footnotes

GAP = "gap/top1"
OTHERS = "retention/mean/top1"
KEPT = "retention/gain/top1"
NOTHING = "–"
OVER_IMAGES = "95 % over images (bootstrap over units, the trained weights held fixed)"
"""What stands above a table of such intervals."""
MOST = 50
"""Trials in a table, unless more are asked for."""


@dataclass(frozen=True)
class MetricColumn:
    """A metric that some row has; accuracies are shown in percent."""

    metric: str
    header: str
    spread: bool = True
    """Whether +- half the 95 % interval stands behind the mean."""
    signed: bool = False

    def plain(self) -> MetricColumn:
        """The same without the spread."""
        return replace(self, spread=False)

    def text(self, row: Row) -> str:
        """`81.2 ±0.4`, or a dash where the row has no mean."""
        mean, half = self.parts(row)
        return f"{mean} ±{half}" if half else mean

    def parts(self, row: Row) -> tuple[str, str]:
        """The mean and half of its interval as a table prints them; the latter may be empty."""
        found = row.metric(self.metric)
        if found.mean is None:
            return NOTHING, ""
        half = found.half_width if self.spread else None
        return self.number(found.mean), "" if half is None else self._magnitude(half)

    def number(self, value: float) -> str:
        """A fraction in percent with one decimal, any other number with three digits."""
        if not is_fraction(self.metric):
            return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        percent = round(100 * value, 1) + 0.0
        return f"{percent:+.1f}" if self.signed else f"{percent:.1f}"

    def _magnitude(self, half: float) -> str:
        return f"{100 * half:.1f}" if is_fraction(self.metric) else f"{half:.2g}"


@dataclass(frozen=True)
class ImagesColumn(MetricColumn):
    """The interval over images of an accuracy, of the rows for which it was asked."""

    def text(self, row: Row) -> str:
        """`80.1 to 82.4`, or a dash."""
        ends = row.ci95_images.get(self.metric)
        return NOTHING if ends is None else f"{self.number(ends.low)} to {self.number(ends.high)}"


def over_images(
    rows: Sequence[Row], columns: Sequence[MetricColumn]
) -> tuple[tuple[Row, ...], tuple[ImagesColumn, ...]]:
    """The rows and columns that have intervals over images; neither where none was asked for."""
    found = tuple(row for row in rows if row.ci95_images)
    names = {name for row in found for name in row.ci95_images}
    chosen = tuple(
        ImagesColumn(column.metric, column.header) for column in columns if column.metric in names
    )
    return (found, chosen) if chosen else ((), ())


def shown_columns(comparison: Comparison, names: Sequence[str] = ()) -> tuple[MetricColumn, ...]:
    """The columns by header or metric name, in this order; without names the usual ones.

    Raises TrackingError with the nearest name for one that no row has.
    """
    if not names:
        return metric_columns(comparison)
    return tuple(column_of(comparison, name) for name in names)


def column_of(comparison: Comparison, name: str, besides: Sequence[str] = ()) -> MetricColumn:
    """The column of a header (`OOD mean`, `outline`) or of a metric (`id/test/ece`).

    Raises TrackingError with the nearest name when no row has it; the message names `besides` too.
    """
    usual = metric_columns(comparison)
    for column in usual:
        if name == column.metric or name.lower() == column.header.lower():
            return column
    if name in comparison.metric_names:
        return MetricColumn(name, name)
    headers = [*besides, *(column.header for column in usual)]
    raise TrackingError(unknown_name("column", name, [*headers, *sorted(comparison.metric_names)]))


def metric_columns(comparison: Comparison) -> tuple[MetricColumn, ...]:
    """What the selection saw, ID, every shift, their mean, the gap, the gain, and retention.

    Runs measure gap and gain of top-1 alone: by another accuracy there is neither.
    """
    rule, names, terms = comparison.rule, comparison.metric_names, comparison.terms
    of_top1 = [MetricColumn(GAP, "gap"), MetricColumn(GAIN, "gain", signed=True)]
    wanted = [
        MetricColumn(terms.val, "ID val"),
        MetricColumn(terms.test, "ID test"),
        *(MetricColumn(metric, shift) for metric, shift in shifts(names, terms.by)),
        MetricColumn(terms.ood, "OOD mean"),
        *(of_top1 if terms.by == TOP1 else ()),
        MetricColumn(OTHERS, "other tasks"),
        MetricColumn(KEPT, "kept there", signed=True),
    ]
    if rule.metric not in {column.metric for column in wanted}:
        wanted.insert(0, MetricColumn(rule.metric, rule.metric.removesuffix(f"/{terms.by}")))
    return tuple(column for column in wanted if column.metric in names)


def visible(
    comparison: Comparison, *, all_alphas: bool, most: int | None = MOST
) -> tuple[Row, ...]:
    """The best arms, and of their merged models all or the chosen one of each merge.

    At most so many trials (None: every one), with the baselines and what stands for an algorithm.
    """
    kept = None if most is None else _best(comparison, most)
    return tuple(
        row
        for row in comparison.rows
        if (row.arm.merge is None or all_alphas or row.chosen or row.selected)
        and (kept is None or unmerged(row) in kept)
    )


def unmerged(row: Row) -> str:
    """The label of a row's arm without its merge: trials of several sweeps share their numbers."""
    return row.arm.label.removesuffix(f" + {row.arm.merge}")


def _best(comparison: Comparison, most: int) -> set[str] | None:
    """Settings by label; None where no more than so many are trials'."""
    rule = comparison.rule
    rows = [row for row in comparison.rows if row.arm.merge is None]
    trials = {row.arm.label for row in rows if row.arm.trial is not None}
    if len(trials) <= most:
        return None
    valued = [
        (rule.better(row.value), unmerged(row))
        for row in comparison.rows
        if row.arm.merge == rule.merge and row.value is not None and row.arm.trial is not None
    ]
    best = {label for _, label in sorted(valued, key=lambda item: -item[0])[:most]}
    standing = {unmerged(row) for row in comparison.rows if row.selected}
    standing |= {row.arm.label for row in rows if row.chosen}
    return best | standing | {row.arm.label for row in rows if row.arm.label not in trials}


def setting(comparison: Comparison, row: Row, *, grouped: bool) -> str:
    """The row's name with its marks; under its arm a merged model has only its own label."""
    name = f"  + {row.arm.merge}" if grouped and row.arm.merge is not None else row.arm.label
    return f"{pointer(comparison, row)}{name}{signs(row)}"


def pointer(comparison: Comparison, row: Row) -> str:
    """A triangle for the selected setting, a dot for what stands for an algorithm with several."""
    if row.selected:
        return "▸ "
    rivals = comparison.rivals[row.arm.algorithm, row.arm.merge]
    stands = row.chosen and rivals > 1 and row.arm.merge == comparison.rule.merge
    return "• " if stands else "  "


def signs(row: Row) -> str:
    """Footnote signs of a row."""
    known = {"untuned": "‡", "names domains": "†"}
    found = "".join(sign for mark, sign in known.items() if mark in row.marks)
    return f" {found}" if found else ""


def count(comparison: Comparison, row: Row) -> str:
    """Finished runs, and of how many where some are lacking."""
    if "incomplete" not in row.marks:
        return str(row.n)
    seeds = 0 if row.arm.confirms else len(comparison.seeds)
    expected = max(seeds, len(row.arm.runs)) if row.arm.has_seeds else 1
    return f"{row.n}/{expected}"


def title(comparison: Comparison) -> str:
    """The sweep, what its settings were chosen on, and over which seeds."""
    rule = comparison.rule
    on = rule.metric if rule.merge is None else f"{rule.metric} of {rule.merge}"
    n = len(comparison.seeds)
    seeds = f", {n} seed{'' if n == 1 else 's'}" if n else ""
    if comparison.tasks:
        seeds = f", for each of {len(comparison.tasks)} tasks and each seed{seeds}"
    by = comparison.terms.by
    judged = "" if by == TOP1 else f", judged by {NOUNS[by]}"
    return f"{comparison.sweep}: settings chosen by {on} ({rule.name}){seeds}{judged}"


def notes(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """What the numbers and signs mean, as far as they occur, and what is not shown."""
    over = "tasks and seeds" if comparison.tasks else "seeds"
    told = [f"{_accuracy(comparison)} in percent, mean over {over}"]
    spread = any(s.ci95 is not None for row in rows for s in row.metrics.values())
    told[0] += (
        " ± half of the 95 % t interval, for this teacher and these classes."
        if spread
        else "; no interval below 3 seeds."
    )
    shown = {unmerged(row) for row in rows}
    every = [row for row in comparison.rows if unmerged(row) in shown]
    if any(row.arm.merge is not None for row in rows) and len(rows) < len(every):
        told.append("Of each merge the row chosen by the same rule as the settings.")
    if any(row.selected for row in rows):
        told.append("▸ selected.")
    if any(pointer(comparison, row) == "• " for row in rows):
        told.append("• stands for its algorithm.")
    settings, all_settings = _settings(rows), _settings(comparison.rows)
    if settings < all_settings:
        told.append(f"{settings} of {all_settings} settings, the best by {comparison.rule.metric}.")
    marks = {mark for row in rows for mark in row.marks}
    if "untuned" in marks:
        told.append("‡ untuned.")
    if "confirmed" in marks:
        told.append("(confirmed) the chosen setting once more, on fresh seeds.")
    if "names domains" in marks:
        told.append("† its contexts name held-out domains.")
    return told


def _accuracy(comparison: Comparison) -> str:
    """`Top-1 accuracy`, `Macro-F1`; of tasks with different ones what each has."""
    terms = comparison.terms
    name = "Top-1 accuracy" if terms.by == TOP1 else capitalised(NOUNS[terms.by])
    if terms.by != BENCHMARK:
        return name
    kinds: dict[str, list[str]] = {}
    for task in comparison.tasks:
        kinds.setdefault(TITLES[terms.on(task).by], []).append(task)
    each = "; ".join(f"{kind} of {', '.join(tasks)}" for kind, tasks in kinds.items())
    return f"{name} ({each})"


def other_kinds(comparison: Comparison, columns: Sequence[MetricColumn]) -> list[str]:
    """What to say of columns whose accuracy is top-1 where methods are ranked by another."""
    if comparison.terms.by == TOP1:
        return []
    others = [column.header for column in columns if kind_of(column.metric) == TOP1]
    return [f"Of top-1 accuracy: {', '.join(others)}."] if others else []


def _settings(rows: Sequence[Row]) -> int:
    return sum(row.arm.merge is None for row in rows)


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


MOST_ON_PAGE = 2000
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
    return of_rows(comparison, shown_rows(comparison))


def everything(comparison: Comparison) -> Table | None:
    """Every setting with its chosen merges; None where that is no more than the headline."""
    rows = visible(comparison, all_alphas=False, most=MOST_ON_PAGE)
    return of_rows(comparison, rows) if len(rows) > len(shown_rows(comparison)) else None


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
