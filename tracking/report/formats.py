"""The table as LaTeX and as pandas frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tracking.comparison.compare import Comparison, Row, metric_order
from tracking.comparison.domainbed import Protocol
from tracking.comparison.runs import RunRecord
from tracking.report.table import NOTHING, MetricColumn, View, count, places, quoted_cell, title
from tracking.report.terminal import latex_cell

if TYPE_CHECKING:
    import pandas as pd


def rows_frame(comparison: Comparison, *, intervals: bool = False) -> pd.DataFrame:
    """One line per row of the comparison: what it is, its varied fields, the mean of each metric.

    Fractions, not percent; NaN where a row has no mean. With `intervals` the ends of the 95 % t
    interval over seeds stand beside each mean, as `<metric> low` and `<metric> high`.
    """
    return _frame([_row(row, intervals=intervals) for row in comparison.rows])


def runs_frame(comparison: Comparison) -> pd.DataFrame:
    """One line per run and evaluated model, in whatever state; metrics of done runs only.

    `merge` is None for the model that the run trained, else the merge's label. Of several tasks
    the runs of all, with a column for the parameter that tells them apart.
    """
    if comparison.protocol is not None:
        field, tasks = comparison.protocol.field, comparison.tasks.items()
        return _frame([{field: task, **line} for task, found in tasks for line in _runs(found)])
    return _frame(_runs(comparison))


def _runs(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        _run(row.arm.label, run, merge)
        for row in comparison.rows
        if row.arm.merge is None
        for run in row.arm.runs
        for merge in (None, *run.merges)
    ]


def _row(row: Row, *, intervals: bool) -> dict[str, Any]:
    line: dict[str, Any] = {
        "setting": row.arm.label,
        "algorithm": row.arm.algorithm,
        "merge": row.arm.merge,
        "role": row.arm.role,
        "trial": row.arm.trial,
        "n": row.n,
        "selected": row.selected,
        "chosen": row.chosen,
        "marks": " ".join(row.marks),
        **row.arm.params,
    }
    for name, found in row.metrics.items():
        line[name] = found.mean
        if intervals:
            low, high = (None, None) if found.ci95 is None else found.ci95
            line |= {f"{name} low": low, f"{name} high": high}
    return line


def _run(label: str, run: RunRecord, merge: str | None) -> dict[str, Any]:
    return {
        "setting": label,
        "algorithm": run.algorithm,
        "merge": merge,
        "role": run.role,
        "trial": run.trial,
        "seed": run.seed,
        "state": run.state,
        "digest": run.digest,
        **run.params,
        **run.values(merge),
    }


def _frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """What a line lacks is missing in it; metrics come last, in the order of tables."""
    import pandas as pd

    names: Mapping[str, None] = {name: None for line in lines for name in line}
    plain = [name for name in names if not _is_metric(name)]
    metrics = sorted(filter(_is_metric, names), key=_order)
    frame = pd.DataFrame(lines, columns=[*plain, *metrics])
    whole = {name: "Int64" for name in ("trial", "seed") if name in frame}
    return frame.astype(whole)


def _is_metric(name: str) -> bool:
    return "/" in name


def _order(name: str) -> tuple[object, ...]:
    metric, _, end = name.partition(" ")
    return (*metric_order(metric), ("", "low", "high").index(end))


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
