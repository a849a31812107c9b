"""A comparison for readers: a terminal table, Markdown for pages, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracking.columns import (
    GAP,
    MOST,
    MetricColumn,
    count,
    metric_columns,
    notes,
    setting,
    shifts,
    title,
    visible,
)
from tracking.compare import Comparison, Row, metric_order
from tracking.selection import VAL
from tracking.verdict import GAIN

NARROWEST = 40
_BETWEEN = 2
"""Blanks between two columns."""
SIDE = frozenset({VAL, GAP, GAIN})
"""Columns whose spread is the first to go."""


def terminal(
    comparison: Comparison,
    *,
    width: int = 100,
    all_alphas: bool = False,
    colour: bool = False,
    most: int | None = MOST,
) -> str:
    """Warnings, the table, what its signs mean, and the verdict, in lines of at most `width`.

    Where the table does not fit, first the spread of the shifts and of less important columns
    goes, then the shifts get tables of their own, then columns are left out and named below. At
    most so many trials are shown, the best ones; None: all.
    """
    rows = visible(comparison, all_alphas=all_alphas, most=most)
    console = Console(
        width=max(width, NARROWEST),
        file=io.StringIO(),
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
    )

    def fits(columns: Sequence[MetricColumn]) -> bool:
        return _width(comparison, rows, columns) <= console.width

    everything = metric_columns(comparison)
    blocks = _blocks(everything, fits)
    with console.capture() as captured:
        for warning in comparison.warnings:
            _paragraph(console, f"! {warning}", style="yellow", hang=2)
        _paragraph(console, title(comparison), style="bold")
        for columns in blocks:
            console.print()
            console.print(_table(comparison, rows, columns), no_wrap=True, crop=False)
        console.print()
        _paragraph(console, " ".join(notes(comparison, rows)), style="dim")
        shown = {column.metric for columns in blocks for column in columns}
        left = [column.header for column in everything if column.metric not in shown]
        if left:
            _paragraph(console, f"Not shown at this width: {', '.join(left)}.", style="dim")
        console.print()
        for sentence in comparison.sentences:
            _paragraph(console, sentence)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def markdown(comparison: Comparison, *, all_alphas: bool = False, most: int | None = MOST) -> str:
    """The same as a page section: warnings as a list, the table, the notes, the verdict."""
    rows = visible(comparison, all_alphas=all_alphas, most=most)
    columns = metric_columns(comparison)
    lines = [f"- **Note:** {_escaped(warning)}" for warning in comparison.warnings]
    lines += [""] if lines else []
    lines.append(_line(["setting", "n", *(column.header for column in columns)]))
    lines.append("| --- | ---: |" + " ---: |" * len(columns))
    for row in rows:
        name = setting(comparison, row, grouped=False).strip()
        cells = [name, count(comparison, row), *(column.text(row) for column in columns)]
        lines.append(_line([f"**{cell}**" for cell in cells] if row.selected else cells))
    lines += ["", _escaped(f"{title(comparison)}. {' '.join(notes(comparison, rows))}"), ""]
    lines += [_escaped(sentence) for sentence in comparison.sentences]
    return "\n".join(lines) + "\n"


def csv_text(comparison: Comparison) -> str:
    """Every row and metric, as fractions: mean, both ends of the interval, the seeds' values."""
    names = sorted(comparison.metric_names, key=metric_order)
    ends = ("mean", "ci95_low", "ci95_high", "values")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["label", "algorithm", "merge", "params", "role", "trial", "n", "selected", "chosen"]
        + ["marks"]
        + [f"{name} {end}" for name in names for end in ends]
    )
    for row in comparison.rows:
        arm = row.arm
        writer.writerow(
            [arm.label, arm.algorithm, arm.merge, json.dumps(dict(arm.params)), arm.role]
            + [arm.trial, row.n, row.selected, row.chosen, " ".join(row.marks)]
            + [cell for name in names for cell in _csv_cells(row, name)]
        )
    return out.getvalue()


def _csv_cells(row: Row, name: str) -> list[object]:
    if name not in row.names:
        return [None] * 4
    found = row.metric(name)
    low, high = (None, None) if found.ci95 is None else found.ci95
    return [found.mean, low, high, json.dumps(list(found.values))]


def _blocks(
    everything: Sequence[MetricColumn], fits: Callable[[Sequence[MetricColumn]], bool]
) -> list[Sequence[MetricColumn]]:
    """The columns of each table: one table where they fit, else the shifts apart."""
    shift = {metric for metric, _ in shifts({column.metric for column in everything})}
    for columns in _ever_narrower(everything, shift):
        if fits(columns):
            return [columns]
    rest = [column for column in everything if column.metric not in shift]
    columns = rest
    for columns in _ever_poorer(rest):
        if fits(columns):
            break
    apart = [_broken(column) for column in everything if column.metric in shift]
    return [columns, *_chunks(apart, fits)]


def _ever_narrower(
    columns: Sequence[MetricColumn], shift: set[str]
) -> Iterator[Sequence[MetricColumn]]:
    """One table with every shift."""
    yield columns
    columns = [c.plain() if c.metric in shift else c for c in columns]
    yield columns
    columns = [_broken(c) if c.metric in shift else c for c in columns]
    yield columns
    columns = [c.plain() if c.metric in SIDE else c for c in columns]
    yield columns
    yield [c for c in columns if c.metric != GAP]


def _ever_poorer(columns: Sequence[MetricColumn]) -> Iterator[Sequence[MetricColumn]]:
    """The table without the shifts; the last one is the least that tells something."""
    yield columns
    columns = [c.plain() if c.metric in SIDE else c for c in columns]
    yield columns
    for least in (GAP, VAL, GAIN):
        columns = [c for c in columns if c.metric != least]
        yield columns
    yield [c.plain() for c in columns]


def _chunks(
    columns: Sequence[MetricColumn], fits: Callable[[Sequence[MetricColumn]], bool]
) -> list[Sequence[MetricColumn]]:
    """As few tables as hold the columns; one that fits nowhere stands alone."""
    chunks: list[list[MetricColumn]] = []
    for column in columns:
        if chunks and fits([*chunks[-1], column]):
            chunks[-1].append(column)
        else:
            chunks.append([column])
    return list(chunks)


def _broken(column: MetricColumn) -> MetricColumn:
    """A header in one line per word."""
    words = column.header.replace("_", " ").replace("-", " ").split()
    return MetricColumn(column.metric, "\n".join(words), column.spread, column.signed)


def _table(comparison: Comparison, rows: Sequence[Row], columns: Sequence[MetricColumn]) -> Table:
    table = Table(box=None, pad_edge=False)
    # Where even the poorest table is too wide the names break, never the numbers.
    table.add_column("setting")
    table.add_column("n", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
    for row in rows:
        cells = _cells(comparison, row, columns)
        table.add_row(*map(Text, cells), style="bold" if row.selected else "")
    return table


def _cells(comparison: Comparison, row: Row, columns: Sequence[MetricColumn]) -> list[str]:
    cells = [setting(comparison, row, grouped=True), count(comparison, row)]
    return cells + [column.text(row) for column in columns]


def _width(comparison: Comparison, rows: Sequence[Row], columns: Sequence[MetricColumn]) -> int:
    """Of the table where nothing is cut; rich measures the same, fifty times as slowly."""
    lines = [["setting", "n", *("" for _ in columns)]]
    lines += [_cells(comparison, row, columns) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    heads = [max(map(cell_len, column.header.split("\n"))) for column in columns]
    widths[2:] = map(max, widths[2:], heads)
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def _paragraph(console: Console, text: str, *, style: str = "", hang: int = 0) -> None:
    """Words wrapped at the console's width; a long name is cut over lines, never lost."""
    lines = Text(text, style=style).wrap(console, console.width - hang)
    for number, line in enumerate(lines):
        console.print(Text(" " * (hang if number else 0)) + line, soft_wrap=True)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
