"""The comparison as text in a terminal."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.console import PlainConsole
from carft_sweep.tracking.report.table import Table, TableOptions, build_table, task_table

NARROWEST = 40
_BETWEEN = 2
"""Number of blanks between two columns."""
_FEWEST = 10
"""Least width of the names in characters, however wide the numbers beside them are."""


def terminal(
    comparison: Comparison,
    *,
    width: int = 100,
    colour: bool = False,
    options: TableOptions | None = None,
) -> str:
    """Return warnings, the table, other tests, and the answer in lines of `width`. In a too wide
    table the shifts get parts of their own. NO_COLOR in the environment switches colours off."""
    options = options or TableOptions()
    colour = colour and not os.environ.get("NO_COLOR")
    table = build_table(comparison, options)
    console = _console(width, colour=colour)
    for warning in comparison.warnings:
        _paragraph(console, f"! {warning}", style="yellow", hang=2)
    _paragraph(console, table.title, style="bold")
    if (tasks := task_table(comparison)) is not None:
        _tables(console, tasks, tasks.notes)
    _tables(console, table, table.notes)
    if comparison.statistics:
        console.print()
    for sentence in comparison.statistics:
        _paragraph(console, sentence)
    # Last, where a terminal shows it without scrolling.
    console.print()
    for number, line in enumerate(comparison.answer.lines):
        _paragraph(console, line, style="" if number else "bold")
    return _text(console)


def table_text(table: Table, *, width: int) -> str:
    """Return a table with its title and notes in lines of `width`."""
    console = _console(width)
    _paragraph(console, table.title, style="bold")
    _tables(console, table, table.notes)
    return _text(console)


def _console(width: int, *, colour: bool = False) -> Console:
    return PlainConsole(
        width=max(width, NARROWEST), file=io.StringIO(), force_terminal=colour, highlight=False
    )


def _text(console: Console) -> str:
    """Return the text printed to a console, without trailing blanks."""
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _tables(console: Console, table: Table, notes: Sequence[str]) -> None:
    """Print the table, in parts where it is too wide, and its notes."""
    names = [line.short or line.name for line in table.lines]
    for heads, columns in _parts(table, names, console.width):
        grid = Grid(box=None, padding=(0, _BETWEEN, 0, 0), pad_edge=False, header_style="bold")
        height = max(head.count("\n") for head in heads)
        for column, head in zip(columns, heads, strict=True):
            top = Text("\n" * (height - head.count("\n")) + head)
            # Where even one column is too wide beside the names, the names break, not the numbers.
            if column == 0:
                grid.add_column(top, overflow="fold", min_width=_FEWEST)
            else:
                grid.add_column(top, justify="right", no_wrap=True)
        for name, line in zip(names, table.lines, strict=True):
            cells = [Text(name), *(Text(cell.text) for cell in line.cells)]
            grid.add_row(*(cells[c] for c in columns), style="bold" if line.selected else "")
        console.print()
        console.print(grid)
    console.print()
    _paragraph(console, " ".join(notes), style="dim")


def _parts(table: Table, names: Sequence[str], width: int) -> Iterator[tuple[list[str], list[int]]]:
    """Yield heads and column numbers of each part of a table, all with its first columns."""
    every = range(len(table.heads))
    own = [max(map(cell_len, names), default=0)]
    own += [max((cell_len(r.cells[c].text) for r in table.lines), default=0) for c in every[:-1]]

    def needed(heads: Sequence[str]) -> list[int]:
        tops = (max(map(cell_len, head.split("\n"))) for head in heads)
        return [_BETWEEN + max(sizes) for sizes in zip(own, tops, strict=True)]

    width += _BETWEEN
    if sum(needed(table.heads)) <= width:
        yield [*table.heads], [*every]
        return
    heads = [
        head if cell_len(head) <= size else "\n".join(re.split(r"[ _-]|(?<=/)", head))
        for size, head in zip(own, table.heads, strict=True)
    ]
    widths = needed(heads)
    fixed, parts = [*every[: table.fixed]], list[list[int]]()

    def fits(columns: Sequence[int]) -> bool:
        return sum(widths[c] for c in columns) <= width

    means = [c for c in every[table.fixed :] if c not in table.shifts]
    for group in (means, sorted(table.shifts)):
        # The shifts stay together, beside the means that the first table has no room for.
        begins_anew = len(parts) < 2 or not fits([*parts[-1], *group])
        for column in group:
            if begins_anew or not fits([*parts[-1], column]):
                parts.append([*fixed])
            begins_anew = False
            parts[-1].append(column)
    for part in parts:
        yield [heads[c] for c in part], part


def _paragraph(console: Console, text: str, *, style: str = "", hang: int = 0) -> None:
    """Print words wrapped at the console's width; a long name is cut over lines, never lost."""
    lines = Text(text, style=style).wrap(console, console.width - hang)
    for number, line in enumerate(lines):
        console.print(Text(" " * (hang if number else 0)) + line, soft_wrap=True)
