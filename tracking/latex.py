"""A comparison as a LaTeX table for a paper: booktabs, the best bold, the second underlined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tracking.columns import NOTHING, MetricColumn, count, title
from tracking.compare import Comparison, Row
from tracking.protocol import Protocol
from tracking.protocol_text import latex_cell
from tracking.ranking import places
from tracking.view import View, quoted_cell

_ESCAPES: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "#": r"\#",
    "$": r"\$",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "–": "--",
    "▸": r"$\triangleright$",
    "•": r"$\bullet$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\S{}",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "·": r"$\cdot$",
    "×": r"$\times$",
}
_EMPHASIS: Mapping[int, str] = {1: r"\textbf", 2: r"\underline"}
"""By place in the column."""


def latex(comparison: Comparison, *, view: View | None = None, command: str = "") -> str:
    r"""A `tabular` for `booktabs`; above it as comments `command`, title and verdict.

    In each column the best value is bold and the next one underlined, by `ranking.places`; what is
    quoted is not ranked. Below it stands in small print what signs and numbers mean. Of several
    tasks their table comes first.
    """
    flat = replace(view or View(), grouped=False)
    rows, columns = flat.rows(comparison), flat.metrics(comparison)
    found = places(rows, columns)
    # No name may end a comment.
    lines = [f"% {' '.join(line.split())}" for line in _comments(comparison, command)]
    if comparison.protocol is not None:
        lines += _protocol(comparison.protocol)
    lines += [rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}", r"\toprule"]
    lines += [_line(["setting", "n", *(escaped(column.header) for column in columns)]), r"\midrule"]
    for row in rows:
        cells = [_cell(column, row, found) for column in columns]
        name = escaped(flat.name(comparison, row).strip())
        lines.append(_line([name, escaped(count(comparison, row)), *cells]))
    if flat.quoted:
        lines.append(r"\midrule")
    for quoted in flat.quoted:
        cells = [_number(quoted_cell(column, quoted)) for column in columns]
        lines.append(_line([escaped(quoted.label), escaped(NOTHING), *cells]))
    notes = flat.told(comparison, rows, columns)
    notes += ["Bold: best, underlined: second, as printed."] if found else []
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\smallskip"]
    lines.append(rf"{{\footnotesize {escaped(' '.join(notes))}\par}}")
    return "\n".join(lines) + "\n"


def _protocol(table: Protocol) -> Iterator[str]:
    yield rf"\begin{{tabular}}{{l{'c' * (len(table.heads()) - 1)}}}"
    yield from (r"\toprule", _line([escaped(head) for head in table.heads()]), r"\midrule")
    for name, cells in table.rows():
        yield _line([escaped(name), *map(latex_cell, cells)])
    yield from (r"\bottomrule", r"\end{tabular}", r"\par\smallskip")
    yield rf"{{\footnotesize {escaped(table.caption)}\par}}"
    yield r"\bigskip"


def escaped(text: str) -> str:
    """Text as LaTeX prints it; a character that no rule knows is printed as it is (UTF-8)."""
    return "".join(_ESCAPES.get(char, char) for char in text.replace("\n", " "))


def _comments(comparison: Comparison, command: str) -> Iterator[str]:
    if command:
        yield command
    yield r"Needs \usepackage{booktabs}."
    for warning in comparison.warnings:
        yield f"! {warning}"
    yield f"{title(comparison)}."
    yield from comparison.sentences


def _cell(column: MetricColumn, row: Row, found: Mapping[tuple[str, str], int]) -> str:
    mean, half = column.parts(row)
    command = _EMPHASIS.get(found.get((column.metric, row.arm.label), 0))
    shown = _number(mean) if command is None else f"{command}{{{_number(mean)}}}"
    return rf"{shown} {{\scriptsize $\pm${half}}}" if half else shown


def _number(text: str) -> str:
    """With a minus as long as a plus."""
    if text == NOTHING:
        return escaped(text)
    return f"$-${text[1:]}" if text.startswith("-") else text


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
