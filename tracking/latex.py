"""A comparison as a LaTeX table for a paper: booktabs, the best bold, the second underlined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tracking.columns import NOTHING, MetricColumn, count, title
from tracking.compare import Comparison, Row
from tracking.metric_kinds import direction
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
_SAME = ("model", "data", "transform")
"""The facts that rows must share to be ranked together."""
_OUTSIDE = frozenset({"oracle", "incomplete"})
"""Marks of rows that are not ranked."""


def latex(comparison: Comparison, *, view: View | None = None, command: str = "") -> str:
    r"""A `tabular` for `booktabs`, with notes, verdict and `command` above it as comments.

    In each column the best value is bold and the next one underlined, equal ones as printed alike.
    Ranked are rows with all their runs, among those of the same backbone and data; of an oracle,
    and what is quoted, nothing is ranked, nor a metric of which neither end is better.
    """
    flat = replace(view or View(), grouped=False)
    rows, columns = flat.rows(comparison), flat.metrics(comparison)
    emphasis = _emphasis(rows, columns)
    told = _comments(comparison, flat, rows, columns, command)
    lines = [f"% {' '.join(line.split())}" for line in told]  # no name may end a comment
    lines += [rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}", r"\toprule"]
    lines += [_line(["setting", "n", *(escaped(column.header) for column in columns)]), r"\midrule"]
    for row in rows:
        cells = [_cell(column, row, emphasis) for column in columns]
        name = escaped(flat.name(comparison, row).strip())
        lines.append(_line([name, escaped(count(comparison, row)), *cells]))
    if flat.quoted:
        lines.append(r"\midrule")
    for quoted in flat.quoted:
        cells = [_number(quoted_cell(column, quoted)) for column in columns]
        lines.append(_line([escaped(quoted.label), escaped(NOTHING), *cells]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it; a character that no rule knows is printed as it is (UTF-8)."""
    return "".join(_ESCAPES.get(char, char) for char in text.replace("\n", " "))


def _comments(
    comparison: Comparison,
    view: View,
    rows: Sequence[Row],
    columns: Sequence[MetricColumn],
    command: str,
) -> Iterator[str]:
    if command:
        yield command
    yield r"Needs \usepackage{booktabs}."
    for warning in comparison.warnings:
        yield f"! {warning}"
    yield f"{title(comparison)}. {' '.join(view.told(comparison, rows, columns))}"
    if any(_ranked(row) for row in rows):
        yield "Bold: best, underlined: second, as printed."
    yield from comparison.sentences


def _emphasis(rows: Sequence[Row], columns: Sequence[MetricColumn]) -> dict[tuple[str, str], str]:
    """By metric and label the LaTeX command of the best and the second among comparable rows."""
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if _ranked(row):
            facts = row.arm.done[0].facts
            alike.setdefault(tuple(str(facts.get(name)) for name in _SAME), []).append(row)
    found: dict[tuple[str, str], str] = {}
    for column in columns:
        for rivals in alike.values():
            for label, command in _places(rivals, column):
                found[column.metric, label] = command
    return found


def _places(rivals: Sequence[Row], column: MetricColumn) -> Iterator[tuple[str, str]]:
    sign = direction(column.metric)
    printed = {row.arm.label: column.parts(row)[0] for row in rivals}
    numbers = {label: float(text) for label, text in printed.items() if text != NOTHING}
    places = sorted(set(numbers.values()), key=lambda number: -sign * number)
    if not sign or len(numbers) < 2 or len(places) < 2:
        return  # one row alone, or all alike: there is no best
    for label, number in numbers.items():
        if number in places[:2]:
            yield label, r"\textbf" if number == places[0] else r"\underline"


def _ranked(row: Row) -> bool:
    return bool(row.arm.done) and not _OUTSIDE & set(row.marks)


def _cell(column: MetricColumn, row: Row, emphasis: Mapping[tuple[str, str], str]) -> str:
    mean, half = column.parts(row)
    command = emphasis.get((column.metric, row.arm.label))
    shown = _number(mean) if command is None else f"{command}{{{_number(mean)}}}"
    return rf"{shown} {{\scriptsize $\pm${half}}}" if half else shown


def _number(text: str) -> str:
    """With a minus as long as a plus."""
    if text == NOTHING:
        return escaped(text)
    return f"$-${text[1:]}" if text.startswith("-") else text


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
