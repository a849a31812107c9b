"""The table as text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracking.comparison.compare import Comparison, Row, metric_order
from tracking.comparison.domainbed import AVERAGE, Cell, Protocol
from tracking.comparison.metrics import shifts
from tracking.comparison.spec import Terms
from tracking.comparison.tasks import TOGETHER
from tracking.comparison.verdict import GAIN
from tracking.report.table import (
    GAP,
    KEPT,
    NOTHING,
    OTHERS,
    OVER_IMAGES,
    MetricColumn,
    View,
    count,
    over_images,
    quoted_cell,
    title,
)

_GAP = "  "
CSV_ENDS = ("mean", "error")


def terminal_lines(table: Protocol, width: int) -> Iterator[str]:
    """The table in lines of at most `width`, as far as one task beside the names allows that.

    Tasks that do not fit stand below in a table of their own.
    """
    heads = table.heads()
    rows = [[name, *(cell.text() for cell in cells)] for name, cells in table.rows()]
    columns = [[head, *cells] for head, cells in zip(heads, zip(*rows, strict=True), strict=True)]
    names, *rest = columns
    for number, some in enumerate(_column_chunks(names, rest, width)):
        if number:
            yield ""
        yield from _lines([names, *some])


def markdown_rows(table: Protocol) -> Iterator[Sequence[str]]:
    """The cells of the heads, then those of each line."""
    yield table.heads()
    for name, cells in table.rows():
        yield [name, *(cell.text() for cell in cells)]


def csv_heads(table: Protocol) -> list[str]:
    """A column for each end of each task and of the average."""
    return [f"{task} {end}" for task in (*table.endpoints, AVERAGE) for end in CSV_ENDS]


def csv_cells(table: Protocol, label: str) -> list[float | None]:
    """Of one row, as fractions; nothing where the row is not in the table."""
    line = table.of(label)
    if line is None:
        return [None] * len(csv_heads(table))
    cells = [*(line.cells[task] for task in table.endpoints), line.average]
    return [end for cell in cells for end in (cell.mean, cell.error)]


def latex_cell(cell: Cell) -> str:
    r"""`81.2 $\pm$ 0.4`, as DomainBed prints it."""
    mean, error = cell.parts()
    return rf"{mean} $\pm$ {error}" if error else mean.replace("–", "--")


def _column_chunks(
    names: Sequence[str], columns: Sequence[Sequence[str]], width: int
) -> list[list[Sequence[str]]]:
    room = width - _column_width(names)
    chunks: list[list[Sequence[str]]] = []
    left = 0
    for column in columns:
        needed = len(_GAP) + _column_width(column)
        if not chunks or needed > left:
            chunks.append([])
            left = room
        chunks[-1].append(column)
        left -= needed
    return chunks


def _lines(columns: Sequence[Sequence[str]]) -> Iterator[str]:
    names, *numbers = columns
    widths = [_column_width(column) for column in numbers]
    for name, *cells in zip(names, *numbers, strict=True):
        shown = (
            f"{' ' * (width - cell_len(cell))}{cell}"
            for cell, width in zip(cells, widths, strict=True)
        )
        yield _GAP.join([set_cell_size(name, _column_width(names)), *shown])


def _column_width(column: Sequence[str]) -> int:
    return max(map(cell_len, column))


Fits = Callable[[Sequence[MetricColumn]], bool]
NARROWEST = 40
_BETWEEN = 2
"""Blanks between two columns."""
SIDE = frozenset({GAP, GAIN, OTHERS, KEPT})
"""Columns whose spread is the first to go, with that of ID val."""


@dataclass(frozen=True)
class _Body:
    """The rows of a terminal table before they are laid out."""

    comparison: Comparison
    view: View
    rows: tuple[Row, ...]

    def lines(self, columns: Sequence[MetricColumn]) -> Iterator[list[str]]:
        """The cells of every row, ours and then the quoted ones."""
        for row in self.rows:
            cells = [self.view.name(self.comparison, row), count(self.comparison, row)]
            yield cells + [column.text(row) for column in columns]
        for quoted in self.view.quoted:
            numbers = [quoted_cell(column, quoted) for column in columns]
            yield [f"  {quoted.label}", NOTHING, *numbers]


def terminal(
    comparison: Comparison, *, width: int = 100, colour: bool = False, view: View | None = None
) -> str:
    """Warnings, the table, what its signs mean, and the verdict, in lines of at most `width`.

    Where the table does not fit, first the spread of the shifts and of less important columns
    goes, then the shifts get tables of their own, then columns are left out and named below.
    Columns that were asked for are never left out: they get tables of their own.
    """
    view = view or View()
    body = _Body(comparison, view, view.rows(comparison))
    console = Console(
        width=max(width, NARROWEST),
        file=io.StringIO(),
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
    )

    def fits(columns: Sequence[MetricColumn]) -> bool:
        return _width(body, columns) <= console.width

    everything = view.metrics(comparison)
    terms = comparison.terms
    blocks = _asked(everything, fits) if view.columns else _blocks(everything, fits, terms)
    with console.capture() as captured:
        for warning in comparison.warnings:
            _paragraph(console, f"! {warning}", style="yellow", hang=2)
        _paragraph(console, title(comparison), style="bold")
        if comparison.protocol is not None:
            _protocol(console, comparison.protocol)
        for columns in blocks:
            console.print()
            console.print(_table(body, columns), no_wrap=True, crop=False)
        _over_images(console, body, everything)
        console.print()
        _paragraph(console, " ".join(view.told(comparison, body.rows, everything)), style="dim")
        shown = {column.metric for columns in blocks for column in columns}
        left = [column.header for column in everything if column.metric not in shown]
        if left:
            _paragraph(console, f"Not shown at this width: {', '.join(left)}.", style="dim")
        console.print()
        for sentence in comparison.sentences:
            _paragraph(console, sentence)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def markdown(comparison: Comparison, *, view: View | None = None) -> str:
    """The same as a page section: warnings as a list, the table, the notes, the verdict."""
    view = view or View()
    columns = view.metrics(comparison)
    lines = [f"- **Note:** {_escaped(warning)}" for warning in comparison.warnings]
    lines += [""] if lines else []
    if comparison.protocol is not None:
        lines += _markdown_protocol(comparison.protocol)
    lines.append(_line(["setting", "n", *(column.header for column in columns)]))
    lines.append("| --- | ---: |" + " ---: |" * len(columns))
    flat = replace(view, grouped=False)
    rows = view.rows(comparison)
    for row in rows:
        name = flat.name(comparison, row).strip()
        cells = [name, count(comparison, row), *(column.text(row) for column in columns)]
        lines.append(_line([f"**{cell}**" for cell in cells] if row.selected else cells))
    for quoted in view.quoted:
        numbers = (quoted_cell(column, quoted) for column in columns)
        lines.append(_line([quoted.label, NOTHING, *numbers]))
    lines += _images_table(comparison, flat, columns)
    lines += [
        "",
        _escaped(f"{title(comparison)}. {' '.join(view.told(comparison, rows, columns))}"),
        "",
    ]
    lines += [_escaped(sentence) for sentence in comparison.sentences]
    return "\n".join(lines) + "\n"


def _markdown_protocol(table: Protocol) -> Iterator[str]:
    heads, *rows = markdown_rows(table)
    yield _line(heads)
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    yield from map(_line, rows)
    yield from ("", _escaped(table.caption), "")


def _images_table(
    comparison: Comparison, view: View, columns: Sequence[MetricColumn]
) -> Iterator[str]:
    rows, chosen = over_images(view.rows(comparison), columns)
    if not rows:
        return
    yield from ("", f"{OVER_IMAGES}:", "")
    yield _line(["setting", *(column.header for column in chosen)])
    yield "| --- |" + " ---: |" * len(chosen)
    for row in rows:
        name = view.name(comparison, row).strip()
        yield _line([name, *(column.text(row) for column in chosen)])


def csv_text(
    comparison: Comparison,
    *,
    view: View | None = None,
    sweeps: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Every row as fractions: mean, both ends of the interval, the seeds' values of each metric.

    Behind them stand both ends of the intervals over images, where they were asked for, and of
    several tasks mean and standard error. Of the metrics all, or those that the view names. With
    `sweeps`, the names by digest, each row says whose it is.
    """
    view = view or View()
    names = sorted(comparison.metric_names, key=metric_order)
    if view.columns:
        names = [column.metric for column in view.metrics(comparison)]
    ends = ("mean", "ci95_low", "ci95_high", "values")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["label", "algorithm", "merge", "params", "role", "trial", "n", "selected", "chosen"]
    whose = [] if sweeps is None else ["sweeps"]
    images = sorted({name for row in comparison.rows for name in row.ci95_images} & {*names})
    heads = [f"{name} {end}" for name in names for end in ends]
    heads += [f"{name} images_{end}" for name in images for end in ("low", "high")]
    table = comparison.protocol
    of_tasks = [] if table is None else csv_heads(table)
    writer.writerow([*head, "marks", *whose, *heads, *of_tasks])
    for row in comparison.rows:
        arm = row.arm
        whose = [] if sweeps is None else [" ".join(sweeps_of_row(row, sweeps))]
        writer.writerow(
            [arm.label, arm.algorithm, arm.merge, json.dumps(dict(arm.params)), arm.role]
            + [arm.trial, row.n, row.selected, row.chosen, " ".join(row.marks), *whose]
            + [cell for name in names for cell in _csv_cells(row, name)]
            + [end for name in images for end in row.ci95_images.get(name, (None, None))]
            + ([] if table is None else csv_cells(table, arm.label))
        )
    for quoted in view.quoted:
        whose = [] if sweeps is None else [""]
        known = [quoted.label, quoted.published.method, None, "{}", "quoted", None, None]
        cells = [cell for name in names for cell in (quoted.values.get(name), None, None, None)]
        cells += [None] * (2 * len(images) + len(of_tasks))
        writer.writerow([*known, False, False, "quoted", *whose, *cells])
    return out.getvalue()


def sweeps_of_row(row: Row, sweeps: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of the sweeps that have a run of this row."""
    # A mean over tasks is of several runs.
    digests = (digest for run in row.arm.runs for digest in run.digest.split(TOGETHER))
    names = (name for digest in digests for name in sweeps.get(digest, ()))
    return list(dict.fromkeys(names))


def _csv_cells(row: Row, name: str) -> list[object]:
    if name not in row.names:
        return [None] * 4
    found = row.metric(name)
    low, high = (None, None) if found.ci95 is None else found.ci95
    return [found.mean, low, high, json.dumps(list(found.values))]


def _protocol(console: Console, table: Protocol) -> None:
    """The table of the tasks, before that of their means."""
    console.print()
    for line in terminal_lines(table, console.width):
        console.print(Text(line), no_wrap=True, crop=False)
    console.print()
    _paragraph(console, table.caption, style="dim")


def _over_images(console: Console, body: _Body, columns: Sequence[MetricColumn]) -> None:
    """The tables of the intervals over images, where there are some."""
    rows, chosen = over_images(body.rows, columns)
    if not rows:
        return
    apart = _Body(body.comparison, replace(body.view, quoted=()), rows)
    console.print()
    _paragraph(console, f"{OVER_IMAGES}:", style="bold")
    broken = [replace(column, header=_broken(column).header) for column in chosen]
    for some in _chunks(broken, lambda columns: _width(apart, columns) <= console.width):
        console.print()
        console.print(_table(apart, some), no_wrap=True, crop=False)


def _blocks(
    everything: Sequence[MetricColumn], fits: Fits, terms: Terms
) -> list[Sequence[MetricColumn]]:
    """The columns of each table: one table where they fit, else the shifts apart."""
    shift = {metric for metric, _ in shifts({column.metric for column in everything}, terms.by)}
    for columns in _ever_narrower(everything, shift, terms.val):
        if fits(columns):
            return [columns]
    rest = [column for column in everything if column.metric not in shift]
    columns = rest
    for columns in _ever_poorer(rest, terms.val):
        if fits(columns):
            break
    apart = [_broken(column) for column in everything if column.metric in shift]
    return [columns, *_chunks(apart, fits)]


def _asked(columns: Sequence[MetricColumn], fits: Fits) -> list[Sequence[MetricColumn]]:
    """Every column that was asked for, in one table where they fit, else in several."""
    broken = [_broken(column) for column in columns]
    for tried in (columns, broken, [column.plain() for column in broken]):
        if fits(tried):
            return [tried]
    return _chunks(broken, fits)


def _ever_narrower(
    columns: Sequence[MetricColumn], shift: set[str], val: str
) -> Iterator[Sequence[MetricColumn]]:
    """One table with every shift."""
    yield columns
    columns = [c.plain() if c.metric in shift else c for c in columns]
    yield columns
    columns = [_broken(c) if c.metric in shift else c for c in columns]
    yield columns
    columns = [c.plain() if c.metric in {*SIDE, val} else c for c in columns]
    yield columns
    yield [c for c in columns if c.metric != GAP]


def _ever_poorer(columns: Sequence[MetricColumn], val: str) -> Iterator[Sequence[MetricColumn]]:
    """The table without the shifts; the last one is the least that tells something."""
    yield columns
    columns = [c.plain() if c.metric in {*SIDE, val} else c for c in columns]
    yield columns
    for least in (GAP, OTHERS, val, GAIN):
        columns = [c for c in columns if c.metric != least]
        yield columns
    yield [c.plain() for c in columns]


def _chunks(columns: Sequence[MetricColumn], fits: Fits) -> list[Sequence[MetricColumn]]:
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
    words = column.header.replace("_", " ").replace("-", " ").replace("/", "/ ").split()
    return MetricColumn(column.metric, "\n".join(words), column.spread, column.signed)


def _table(body: _Body, columns: Sequence[MetricColumn]) -> Table:
    table = Table(box=None, pad_edge=False)
    # Where even the poorest table is too wide the names break, never the numbers.
    table.add_column("setting")
    table.add_column("n", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
    styles = ["bold" if row.selected else "" for row in body.rows]
    styles += ["dim"] * len(body.view.quoted)
    for cells, style in zip(body.lines(columns), styles, strict=True):
        table.add_row(*map(Text, cells), style=style)
    return table


def _width(body: _Body, columns: Sequence[MetricColumn]) -> int:
    """Of the table where nothing is cut; rich measures the same, fifty times as slowly."""
    lines = [["setting", "n", *("" for _ in columns)], *body.lines(columns)]
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
