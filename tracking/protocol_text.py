"""The table of several tasks as text: for a terminal, for pages, for papers, for spreadsheets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from tracking.protocol import AVERAGE, Cell, Protocol

_BETWEEN = "  "
CSV_ENDS = ("mean", "error")


def terminal_lines(table: Protocol, width: int) -> Iterator[str]:
    """The table in lines of at most `width`, as far as one task beside the names allows that.

    Tasks that do not fit stand below in a table of their own.
    """
    heads = table.heads()
    rows = [[name, *(cell.text() for cell in cells)] for name, cells in table.rows()]
    columns = [[head, *cells] for head, cells in zip(heads, zip(*rows, strict=True), strict=True)]
    names, *rest = columns
    for number, some in enumerate(_chunks(names, rest, width)):
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


def _chunks(
    names: Sequence[str], columns: Sequence[Sequence[str]], width: int
) -> list[list[Sequence[str]]]:
    room = width - _width(names)
    chunks: list[list[Sequence[str]]] = []
    left = 0
    for column in columns:
        needed = len(_BETWEEN) + _width(column)
        if not chunks or needed > left:
            chunks.append([])
            left = room
        chunks[-1].append(column)
        left -= needed
    return chunks


def _lines(columns: Sequence[Sequence[str]]) -> Iterator[str]:
    names, *numbers = columns
    widths = [_width(column) for column in numbers]
    for name, *cells in zip(names, *numbers, strict=True):
        shown = (
            f"{' ' * (width - cell_len(cell))}{cell}"
            for cell, width in zip(cells, widths, strict=True)
        )
        yield _BETWEEN.join([set_cell_size(name, _width(names)), *shown])


def _width(column: Sequence[str]) -> int:
    return max(map(cell_len, column))
