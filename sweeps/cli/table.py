"""Plain tables of text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from carft_sweep.tracking.console import PlainConsole

WIDEST = 10_000


def table_lines(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    width: int = WIDEST,
    right: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the lines of a table; columns in `right` are numbers, only the last column wraps."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column != columns[-1],
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    buffer = io.StringIO()
    PlainConsole(file=buffer, width=width, color_system=None).print(table)
    yield from (line.rstrip() for line in buffer.getvalue().splitlines())
