"""The comparison as text in a terminal."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.console import PlainConsole
from carft_sweep.tracking.report.table import (
    Cell,
    Table,
    TableOptions,
    build_table,
    images_table,
    task_table,
)

NARROWEST = 40
_BETWEEN = 2
"""Blanks between two columns."""
_FEWEST = 10
"""Columns of the terminal that a name has, however wide the numbers beside it are."""


def terminal(
    comparison: Comparison,
    *,
    width: int = 100,
    colour: bool = False,
    options: TableOptions | None = None,
) -> str:
    """Render warnings, the table, what its signs mean, and the answer in lines of `width`.

    Where the table does not fit, the shifts get tables of their own. With NO_COLOR in the
    environment there are no colours, whoever requests them.
    """
    options = options or TableOptions()
    colour = colour and not os.environ.get("NO_COLOR")
    table = build_table(comparison, options)
    console = PlainConsole(
        width=max(width, NARROWEST),
        file=io.StringIO(),
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
    )
    with console.capture() as captured:
        for warning in comparison.warnings:
            _paragraph(console, f"! {warning}", style="yellow", hang=2)
        _paragraph(console, table.title, style="bold")
        if (tasks := task_table(comparison)) is not None:
            _tables(console, tasks)
            console.print()
            _paragraph(console, " ".join(tasks.notes), style="dim")
        _tables(console, table)
        if (images := images_table(comparison, options)) is not None:
            console.print()
            _paragraph(console, images.title, style="bold")
            _tables(console, images)
        console.print()
        notes = table.notes_with("Underlined") if colour else table.notes
        _paragraph(console, " ".join(notes), style="dim")
        console.print()
        for number, line in enumerate(comparison.answer.lines):
            _paragraph(console, line, style="" if number else "bold")
        console.print()
        for sentence in comparison.statistics:
            _paragraph(console, sentence)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _tables(console: Console, table: Table) -> None:
    """Print the table, in parts where it is too wide."""
    names = [line.short or line.name for line in table.lines]
    columns = [
        names,
        *([line.cells[c].text for line in table.lines] for c in range(len(table.heads) - 1)),
    ]
    for heads, part in _parts(table, columns, console.width):
        texts = [head.split("\n") for head in heads]
        widths = [
            max(map(cell_len, (*text, *columns[c]))) for text, c in zip(texts, part, strict=True)
        ]
        # Where even one column is too wide beside the names, the names break, never the numbers.
        room = console.width - sum(widths[1:]) - _BETWEEN * (len(widths) - 1)
        widths[0] = min(widths[0], max(room, _FEWEST))
        height = max(map(len, texts))
        tops = [Text("\n").join(map(Text, [""] * (height - len(text)) + text)) for text in texts]
        grid = [_grid_line(console, tops, widths, "bold")]
        for name, line in zip(names, table.lines, strict=True):
            cells = [Text(name), *map(_cell_text, line.cells)]
            style = "bold" if line.selected else ""
            grid.append(_grid_line(console, [cells[c] for c in part], widths, style))
        console.print()
        console.print(Text("\n").join(grid), soft_wrap=True)


def _grid_line(console: Console, cells: Sequence[Text], widths: Sequence[int], style: str) -> Text:
    """Set cells beside each other, of which only the first is wrapped and begins at the left."""
    columns = [[*cells[0].wrap(console, widths[0])], *([*cell.split()] for cell in cells[1:])]
    lines = []
    for number in range(max(map(len, columns))):
        line = Text(style=style)
        for column, width in zip(columns, widths, strict=True):
            text = column[number] if number < len(column) else Text()
            blanks = " " * (width - text.cell_len)
            if column is columns[0]:
                line += text + blanks
            else:
                line += Text(" " * _BETWEEN + blanks) + text
        lines.append(line)
    return Text("\n").join(lines)


def _parts(
    table: Table, columns: Sequence[Sequence[str]], width: int
) -> Iterator[tuple[list[str], list[int]]]:
    """Yield the heads and the columns of each part, the first ones in every part."""
    widths = [max(map(cell_len, column), default=0) for column in columns]
    every = list(range(len(columns)))
    whole = [max(own, cell_len(head)) for own, head in zip(widths, table.heads, strict=True)]
    if sum(whole) + _BETWEEN * (len(whole) - 1) <= width:
        yield [*table.heads], every
        return
    heads = [
        head if cell_len(head) <= own else "\n".join(re.split(r"[ _-]|(?<=/)", head))
        for head, own in zip(table.heads, widths, strict=True)
    ]
    needed = [
        max(own, *map(cell_len, head.split("\n"))) + _BETWEEN
        for own, head in zip(widths, heads, strict=True)
    ]
    fixed, rest = every[: table.fixed], every[table.fixed :]
    room = width + _BETWEEN - sum(needed[c] for c in fixed)
    for group in ([c for c in rest if c not in table.shifts], sorted(table.shifts)):
        part: list[int] = []
        for column in group:
            if part and sum(needed[c] for c in (*part, column)) > room:
                yield [heads[c] for c in (*fixed, *part)], [*fixed, *part]
                part = []
            part.append(column)
        if part:
            yield [heads[c] for c in (*fixed, *part)], [*fixed, *part]


def _cell_text(cell: Cell) -> Text:
    text = Text(cell.text)
    if cell.best:
        text.stylize("underline", 0, len(cell.number))
    return text


def _paragraph(console: Console, text: str, *, style: str = "", hang: int = 0) -> None:
    """Wrap words at the console's width; a long name is cut over lines, never lost."""
    lines = Text(text, style=style).wrap(console, console.width - hang)
    for number, line in enumerate(lines):
        console.print(Text(" " * (hang if number else 0)) + line, soft_wrap=True)
