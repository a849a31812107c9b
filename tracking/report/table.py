"""The table of a comparison, built once: rows, columns, cells as printed, marks, notes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from carft_sweep.tracking.comparison.caveats import join_few
from carft_sweep.tracking.comparison.compare import Comparison, Row, shown_rows
from carft_sweep.tracking.comparison.metrics import (
    BENCHMARK,
    NOUNS,
    TITLES,
    TOP1,
    capitalised,
    is_fraction,
    kind_of,
    named,
    shifts,
)
from carft_sweep.tracking.comparison.power import MOST_SEEDS, Power
from carft_sweep.tracking.comparison.runs import (
    Arm,
    ArmKey,
    distinct_texts,
    value_key,
    value_text,
    varied_fields,
)
from carft_sweep.tracking.comparison.tasks import AVERAGE, domainbed_table
from carft_sweep.tracking.comparison.verdict import GAIN
from carft_sweep.tracking.errors import TrackingError, counted, unknown_name

NOTHING = "–"
MOST = 50
"""Most trials in a table, unless more are requested."""
MOST_ON_PAGE = 2000
"""Most trials in the full table: with more the page becomes large, and nobody reads it."""
SELECTED = "▸ "
"""What precedes the name of the selected setting."""
_SIGNS = {"untuned": "‡", "names domains": "†", "sample-wise": "¶", "transductive": "§"}
"""Signs of marks, printed behind the name of a row."""


@dataclass(frozen=True)
class TableOptions:
    """Which rows and columns of a comparison its table shows."""

    columns: tuple[str, ...] = ()
    """Headers or metric names; empty: the usual columns."""
    max_trials: int | None = MOST
    """Most trials shown; None: every trial."""
    all_alphas: bool = False
    """Whether every merged model has a row; else only the selected one of each merge."""
    published_zero_shot: tuple[str, ...] = ()
    """Sentences on the zero-shot models beside LAION's table."""


@dataclass(frozen=True)
class Column:
    """A metric that some row has; accuracies are shown in percent."""

    metric: str
    header: str
    signed: bool = False

    def number(self, value: float | None) -> str:
        """Return a fraction in percent with one decimal, any other number with three digits."""
        if value is None:
            return NOTHING
        if not is_fraction(self.metric):
            return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return f"{100 * value:+z.1f}" if self.signed else f"{100 * value:z.1f}"

    def cell(self, row: Row) -> Cell:
        """Return the mean of a row and half of its 95 % interval, as printed."""
        estimate = row.metric(self.metric)
        if (half := estimate.half_width) is None:
            return Cell(self.number(estimate.mean))
        half_text = f"{100 * half:.1f}" if is_fraction(self.metric) else f"{half:.2g}"
        return Cell(self.number(estimate.mean), half_text)


@dataclass(frozen=True)
class Cell:
    """A number as printed."""

    number: str
    half: str = ""
    """What stands behind the ±, if anything."""

    @property
    def text(self) -> str:
        """The mean with half of the interval, `81.2 ±0.4`, or a dash."""
        return f"{self.number} ±{self.half}" if self.half else self.number


@dataclass(frozen=True)
class Line:
    """A row as printed."""

    name: str
    """Name of the row, with its marks."""
    cells: tuple[Cell, ...]
    selected: bool = False
    short: str = ""
    """Of a merged model: its own label, as printed below the row of its arm."""
    runs: tuple[tuple[str, str], ...] = ()
    """Seed and digest of each run, in whatever state; a merged model's stand with its arm."""


@dataclass(frozen=True)
class Table:
    """Rows and columns as every format prints them."""

    title: str
    heads: tuple[str, ...]
    """The first heads the names."""
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    fixed: int = 1
    """Number of first columns that each part of a too wide table repeats."""
    shifts: frozenset[int] = field(default_factory=frozenset)
    """Positions of the columns that get a part of their own where the table is too wide."""


def build_table(
    comparison: Comparison,
    options: TableOptions = TableOptions(),
    rows: Sequence[Row] | None = None,
) -> Table:
    """Return the table of the given rows, by default of those that the options show. Raises
    TrackingError for a column that no row has."""
    columns = resolve_columns(comparison, options.columns)
    rows = visible_rows(comparison, options) if rows is None else rows
    cells = [[column.cell(row) for column in columns] for row in rows]
    is_numbered = any(row.arm.is_numbered for row in rows)
    fields = varied_fields(row.arm for row in comparison.rows) if is_numbered else {}
    texts = {name: _value_texts(comparison, name) for name in fields}
    lines = [
        _line(comparison, row, [Cell(_count(comparison, row)), *of_row, *_values(row.arm, texts)])
        for row, of_row in zip(rows, cells, strict=True)
    ]
    of_shifts = {metric for metric, _ in shifts(comparison.metric_names, comparison.endpoint.by)}
    apart = (
        () if options.columns else (c for c, col in enumerate(columns) if col.metric in of_shifts)
    )
    return Table(
        title=title(comparison),
        heads=("setting", "n", *(column.header for column in columns), *fields.values()),
        lines=tuple(lines),
        notes=(
            *_notes(comparison, rows, columns, spread=any(c.half for line in cells for c in line)),
            *options.published_zero_shot,
        ),
        fixed=2,
        shifts=frozenset(2 + column for column in apart),
    )


def _value_texts(comparison: Comparison, name: str) -> dict[str, str]:
    """Return the text of each value of a field by its key, no two alike."""
    arms = (row.arm for row in comparison.rows)
    return distinct_texts((arm.params[name] for arm in arms if name in arm.params), value_text)


def _values(arm: Arm, texts: Mapping[str, Mapping[str, str]]) -> Iterator[Cell]:
    """Yield a cell for each field's value in an arm; blank if merged: its arm's row is above."""
    for name, of_values in texts.items():
        is_there = arm.merge is None and name in arm.params
        yield Cell(of_values[value_key(arm.params[name])] if is_there else "")


def task_table(comparison: Comparison) -> Table | None:
    """Return DomainBed's table, a column for each task; None with a single task."""
    table = domainbed_table(comparison)
    if table is None:
        return None
    lines = []
    for line in table.lines:
        cells = [*(line.cells[task] for task in table.endpoints), line.average]
        numbers = [("" if c.error is None else f" {100 * c.error:.1f}", c.mean) for c in cells]
        printed = (Cell(NOTHING if m is None else f"{100 * m:.1f}", half) for half, m in numbers)
        lines.append(Line(line.arm.label, tuple(printed)))
    heads = ("algorithm", *table.endpoints, AVERAGE)
    return Table(title(comparison), heads, tuple(lines), table.notes)


POWER_SEEDS = (5, 10, 20, 50)
"""Numbers of seeds for which a table of power has a column."""


def power_table(comparison: Comparison) -> Table:
    """Return a table of the differences (points) that each claim's seeds and images can show."""
    endpoint, lines = comparison.endpoint, []
    claims: list[tuple[str, Power | None, int, float]] = []
    for curve in comparison.curve_verdicts:
        name = f"{curve.pair.candidate.name} + WiSE-FT, curve"
        claims.append((name, curve.power, len(curve.pair.seeds), endpoint.ood_margin))
    for verdict in comparison.verdicts:
        name, margins = verdict.pair.candidate.name, {endpoint.id_metric: endpoint.id_margin}
        for metric in dict.fromkeys((endpoint.metric, endpoint.id_metric)):
            margin = margins.get(metric, endpoint.margin)
            test = verdict.pair.test(metric)
            power, seeds = Power.of(test, verdict.level), len(verdict.pair.seeds)
            claims.append((f"{name}, {named(metric)}", power, seeds, margin))
    for name, power, seeds, margin in claims:
        if power is None:
            lines.append(Line(name, (Cell(NOTHING),) * (4 + len(POWER_SEEDS))))
            continue
        of_images = None if power.images is None else math.sqrt(power.images.variance)
        needed = power.seeds_for(margin, seeds)
        smallest = [power.smallest_difference(n) for n in (seeds, *POWER_SEEDS)]
        numbers = [f"{100 * fraction:.2f}" for fraction in (power.of_seeds, *smallest)]
        numbers.insert(1, NOTHING if of_images is None else f"{100 * of_images:.2f}")
        cells = [*numbers, "never" if needed is None else str(needed)]
        lines.append(Line(name, tuple(map(Cell, cells))))
    heads = ("claim", "SD seeds", "SE images", "now", *(f"{n} seeds" for n in POWER_SEEDS))
    return Table(
        "The true difference that is found in 80 % of such sweeps, in points:",
        (*heads, "seeds for margin"),
        tuple(lines),
        (
            f"SD over seeds of the paired differences; SE from the test images. Margins: OOD "
            f"{100 * endpoint.ood_margin:.3g}, ID {100 * endpoint.id_margin:.3g} points; never: "
            f"{MOST_SEEDS} do not show it, as test images or alphas are too few.",
        ),
    )


def headline(comparison: Comparison) -> Table:
    """Return the table of the rows that represent each algorithm, and of their selected merges."""
    return build_table(comparison, rows=shown_rows(comparison))


def full_table(comparison: Comparison) -> Table | None:
    """Return the table of every setting; None where the headline has them all."""
    rows = visible_rows(comparison, TableOptions(max_trials=MOST_ON_PAGE))
    more = len(rows) > len(shown_rows(comparison))
    return build_table(comparison, rows=rows) if more else None


def resolve_columns(comparison: Comparison, names: Sequence[str] = ()) -> tuple[Column, ...]:
    """Return the columns with these headers (`OOD mean`) or metric names (`id/test/ece`), else the
    usual columns. Raises TrackingError with the nearest name for a column that no row has."""
    usual = usual_columns(comparison)
    by_metric = {name: Column(name, name) for name in sorted(comparison.metric_names)}
    by_metric |= {column.metric: column for column in usual}
    by_header = {column.header.lower(): column for column in usual}
    columns = []
    for name in names:
        column = by_metric.get(name) or by_header.get(name.lower())
        if column is None:
            headers = [column.header for column in usual]
            raise TrackingError(unknown_name("column", name, [*headers, *by_metric]))
        columns.append(column)
    return tuple(columns) or usual


def usual_columns(comparison: Comparison) -> tuple[Column, ...]:
    """Return the columns of the selection metric, ID, the OOD mean, gain and gap, shifts,
    retention. The OOD mean is beside ID, where every screen shows it. Runs measure gap and gain of
    top-1 alone: a comparison by another accuracy has no such columns."""
    rule, names, endpoint = comparison.rule, comparison.metric_names, comparison.endpoint
    of_top1 = [Column(GAIN, "gain", signed=True), Column("gap/top1", "gap")]
    columns = [
        Column(endpoint.val, "ID val"),
        Column(endpoint.test, "ID test"),
        Column(endpoint.ood, "OOD mean"),
        *(of_top1 if endpoint.by == TOP1 else ()),
        *(Column(metric, shift) for metric, shift in shifts(names, endpoint.by)),
        Column("retention/mean/top1", "other tasks"),
        Column("retention/gain/top1", "kept there", signed=True),
    ]
    if rule.metric not in {column.metric for column in columns}:
        columns.insert(0, Column(rule.metric, rule.metric.removesuffix(f"/{endpoint.by}")))
    return tuple(column for column in columns if column.metric in names)


def visible_rows(comparison: Comparison, options: TableOptions) -> tuple[Row, ...]:
    """Return the best arms, and of their merged models all or the selected one of each merge. At
    most `max_trials` trials and as many baselines, and those that represent an algorithm."""
    settings = None if options.max_trials is None else _best(comparison, options.max_trials)
    return tuple(
        row
        for row in comparison.rows
        if (row.arm.merge is None or options.all_alphas or row.chosen or row.selected)
        and (settings is None or row.setting in settings)
    )


def _best(comparison: Comparison, most: int) -> set[ArmKey]:
    """Return the keys of the `most` best trials and baselines, and of the settings that represent
    an algorithm."""
    rule = comparison.rule
    rows = [row for row in comparison.rows if row.arm.merge is None]
    standing = {row.setting for row in comparison.rows if row.selected}
    standing |= {row.setting for row in rows if row.chosen}
    ranks = {
        row.setting: -rule.better(row.value)
        for row in comparison.rows
        if row.arm.merge == rule.merge and row.value is not None
    }
    rows.sort(key=lambda row: ranks.get(row.setting, math.inf))
    trials, baselines = (
        dict.fromkeys(row.setting for row in rows if (row.arm.trial is None) == is_baseline)
        for is_baseline in (False, True)
    )
    return standing.union([*trials][:most], [*baselines][:most])


def _pointer(comparison: Comparison, row: Row) -> str:
    """Return a triangle for the selected setting, a dot for the best of several, else blanks."""
    if row.selected:
        return SELECTED
    rivals = comparison.rivals[row.arm.algorithm, row.arm.merge]
    stands = row.chosen and rivals > 1 and row.arm.merge == comparison.rule.merge
    return "• " if stands else "  "


def _line(comparison: Comparison, row: Row, cells: Sequence[Cell]) -> Line:
    pointer = _pointer(comparison, row)
    signs = "".join(sign for mark, sign in _SIGNS.items() if mark in row.marks)
    end = f" {signs}" if signs else ""
    is_merged = row.arm.merge is not None
    short = f"{pointer}  + {row.arm.merge}{end}" if is_merged else ""
    runs = () if is_merged else row.arm.runs
    return Line(
        f"{pointer}{row.arm.label}{end}",
        tuple(cells),
        row.selected,
        short=short,
        runs=tuple(("" if run.seed is None else str(run.seed), run.digest) for run in runs),
    )


def _count(comparison: Comparison, row: Row) -> str:
    """Return the number of finished runs of a row, as `3/5` where some are missing."""
    if "incomplete" not in row.marks:
        return str(row.n)
    seeds = 0 if row.arm.confirms else len(comparison.seeds)
    return f"{row.n}/{max(seeds, len(row.arm.runs)) if row.arm.has_seeds else 1}"


def title(comparison: Comparison) -> str:
    """Return the sweep's name, its data, what settings were selected on, and over which seeds."""
    rule = comparison.rule
    on = rule.metric if rule.merge is None else f"{rule.metric} of {rule.merge}"
    n = len(comparison.seeds)
    seeds = f", {counted(n, 'seed')}" if n else ""
    if comparison.tasks:
        seeds = f", for each of {len(comparison.tasks)} tasks and each seed{seeds}"
    by = comparison.endpoint.by
    judged = "" if by == TOP1 else f", judged by {NOUNS[by]}"
    data = f" on {join_few(comparison.datasets)}" if comparison.datasets else ""
    choice = f"settings chosen by {on} ({rule.name})"
    if comparison.verdicts and all(row.value is None for row in comparison.rows):
        choice = "one setting of each method"
    return f"{comparison.sweep}{data}: {choice}{seeds}{judged}"


def _notes(
    comparison: Comparison, rows: Sequence[Row], columns: Sequence[Column], *, spread: bool
) -> list[str]:
    """Return notes on what the numbers and signs of the table mean, and on what is not shown."""
    over = "tasks and seeds" if comparison.tasks else "seeds"
    interval = (
        " ± half of the 95 % t interval, for this teacher and these classes."
        if spread
        else "; no interval below 3 seeds."
    )
    notes = [f"{_accuracy(comparison)} in percent, mean over {over}{interval}"]
    shown = {row.setting for row in rows}
    every = [row for row in comparison.rows if row.setting in shown]
    if any(row.arm.merge is not None for row in rows) and len(rows) < len(every):
        notes.append("Of merges those that the same rule chooses are shown, and alpha 0.5.")
    pointers = {_pointer(comparison, row) for row in rows}
    settings, of = (sum(r.arm.merge is None for r in each) for each in (rows, comparison.rows))
    marks = {mark for row in rows for mark in row.marks}
    others = [column.header for column in columns if not is_fraction(column.metric)]
    top1 = [column.header for column in columns if kind_of(column.metric) == TOP1]
    if_true = {
        f"{SELECTED}selected.": SELECTED in pointers,
        "• best setting of its algorithm.": "• " in pointers,
        f"{settings} of {of} settings, the best by {comparison.rule.metric}.": settings < of,
        "‡ untuned: tried at fewer settings than others.": "untuned" in marks,
        "(confirmed) the chosen setting once more, on fresh seeds.": "confirmed" in marks,
        f"OOD validation: settings were chosen by {comparison.rule.metric}, which is out of "
        "distribution.": comparison.rule.metric.startswith("ood/val/"),
        "† its contexts name held-out domains.": "names domains" in marks,
        "¶ sample-wise: each image has its own mix of two models.": "sample-wise" in marks,
        "§ transductive: an answer depends on the other images of a split.": "transductive"
        in marks,
        f"Of top-1 accuracy: {', '.join(top1)}.": comparison.endpoint.by != TOP1 and bool(top1),
        f"Not in percent: {', '.join(others)}.": bool(others),
    }
    return notes + [note for note, holds in if_true.items() if holds]


def _accuracy(comparison: Comparison) -> str:
    """Return the name of the accuracy, such as `Macro-F1`, or of each task's own."""
    endpoint = comparison.endpoint
    name = "Top-1 accuracy" if endpoint.by == TOP1 else capitalised(NOUNS[endpoint.by])
    if endpoint.by != BENCHMARK:
        return name
    kinds: dict[str, list[str]] = {}
    for task in comparison.tasks:
        kinds.setdefault(TITLES[endpoint.on(task).by], []).append(task)
    each = "; ".join(f"{kind} of {', '.join(tasks)}" for kind, tasks in kinds.items())
    return f"{name} ({each})"
