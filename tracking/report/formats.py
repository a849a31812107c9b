"""The comparison as JSON, CSV, Markdown, LaTeX, and as pandas frames."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from carft_sweep.tracking.comparison.caveats import datasets
from carft_sweep.tracking.comparison.compare import Comparison, Row
from carft_sweep.tracking.comparison.curves import CurveVerdict
from carft_sweep.tracking.comparison.effects import Effect
from carft_sweep.tracking.comparison.metrics import metric_order
from carft_sweep.tracking.comparison.pooling import Owners
from carft_sweep.tracking.comparison.runs import Arm
from carft_sweep.tracking.comparison.sentences import Answer
from carft_sweep.tracking.comparison.spec import Endpoint
from carft_sweep.tracking.comparison.statistics import Estimate, PairedTest
from carft_sweep.tracking.comparison.tasks import (
    AVERAGE,
    TOGETHER,
    DomainBedTable,
    TaskCell,
    domainbed_table,
)
from carft_sweep.tracking.comparison.verdict import Verdict
from carft_sweep.tracking.report.table import (
    Cell,
    Table,
    TableOptions,
    build_table,
    resolve_columns,
    task_table,
)

if TYPE_CHECKING:
    import pandas as pd


def to_json(
    comparison: Comparison, *, options: TableOptions | None = None, owners: Owners | None = None
) -> dict[str, Any]:
    """Return what `compare --json` prints: plain data, accuracies as fractions. With `owners` each
    row names the sweeps of its runs."""
    rule, endpoint, selected = comparison.rule, comparison.endpoint, comparison.selected
    document: dict[str, Any] = {
        "sweep": comparison.sweep,
        "metric": rule.metric,
        "goal": rule.goal,
        "data": comparison.datasets,
        "metric_merge": rule.merge,
        "selection": rule.name,
        "by": endpoint.by,
        "id_margin": endpoint.id_margin,
        "ood_margin": endpoint.ood_margin,
        "seeds": comparison.seeds,
        "fresh_seeds": comparison.fresh_seeds,
        "verdict": comparison.verdict,
        "answer": _json_answer(comparison.answer, endpoint),
        "statistics": comparison.statistics,
        "warnings": comparison.warnings,
        "rows": [_json_row(row, owners) for row in comparison.rows],
        "selected": selected
        and {
            "label": selected.arm.label,
            "params": dict(selected.arm.params),
            "trial": selected.arm.trial,
            "value": selected.value,
        },
        "curves": [_json_curve(verdict) for verdict in comparison.curve_verdicts],
        "tests": [_json_verdict(verdict) for verdict in comparison.verdicts],
        "budgets": [asdict(budget) for budget in comparison.budgets],
        "mean_curves": [
            {"label": curve.arm.label, "points": [point._asdict() for point in curve.points]}
            for curve in comparison.curves
        ],
    }
    if (table := domainbed_table(comparison)) is not None:
        parts = {task: to_json(part) for task, part in comparison.tasks.items()}
        field = {"field": comparison.spec.tasks}
        document["tasks"] = {**field, **_json_tasks(table), "comparisons": parts}
    if owners is not None:
        document["sweeps"] = comparison.sweep.split(" + ")
    if options is not None:
        document["published_zero_shot"] = options.published_zero_shot
    return document


def _json_row(row: Row, owners: Owners | None) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "label": row.arm.label,
        "algorithm": row.arm.algorithm,
        "merge": row.arm.merge,
        "params": dict(row.arm.params),
        "n": row.n,
        "metrics": {name: _json_estimate(estimate) for name, estimate in row.metrics.items()},
        "role": row.arm.role,
        "trial": row.arm.trial,
        "runs": dict(row.arm.states),
        "value": row.value,
        "selected": row.selected,
        "chosen": row.chosen,
        "marks": row.marks,
    }
    return plain if owners is None else {**plain, "sweeps": owners_of(row, owners)}


def _json_estimate(estimate: Estimate) -> dict[str, Any]:
    return {"mean": estimate.mean, "ci95": estimate.ci95, "values": estimate.values}


def _json_answer(answer: Answer, endpoint: Endpoint) -> dict[str, Any]:
    strongest = answer.strongest
    against = None if strongest is None else strongest.verdict

    def model(arm: Arm) -> dict[str, Any]:
        means = {"endpoint": endpoint.metric, "id": endpoint.id_metric}
        return {name: _json_estimate(arm.estimate(metric)) for name, metric in means.items()}

    return {
        "lines": answer.lines,
        "strongest": strongest
        and {
            "label": strongest.arm.label,
            "eligible": strongest.eligible,
            "models": strongest.models,
            **model(strongest.arm),
            "runner_up": against
            and {"label": against.pair.reference.label, **model(against.pair.reference)},
            "test": against and _json_verdict(against),
        },
        "candidate": answer.verdict and answer.verdict.pair.candidate.label,
        "effects": [_json_effect(effect) for effect in answer.effects],
    }


def _json_effect(effect: Effect) -> dict[str, Any]:
    return {
        "parameter": effect.parameter,
        "algorithm": effect.algorithm,
        "numeric": effect.numeric,
        "levels": [level._asdict() for level in effect.levels],
        "settings": effect.settings,
        "difference": _json_test(effect.difference, effect.level),
        "id_difference": _json_test(effect.id_difference),
        "selected": effect.selected,
    }


def _json_test(test: PairedTest | None, level: float = 0.95) -> dict[str, Any] | None:
    """Return a test's differences, errors over seeds and images, and interval at a level."""
    if test is None:
        return None
    images = test.images
    return {
        "mean": test.mean,
        "values": test.differences,
        "spreads": test.spreads,
        "level": level,
        "interval": test.interval(level),
        "p": test.p,
        "images": images and {"se": math.sqrt(images.variance), **images._asdict()},
    }


def _json_verdict(verdict: Verdict) -> dict[str, Any]:
    pair, endpoint, level = verdict.pair, verdict.pair.endpoint, verdict.level
    return {
        "candidate": pair.candidate.label,
        "reference": pair.reference.label,
        "seeds": pair.seeds,
        endpoint.ood: _json_test(pair.ood, level),
        endpoint.id_metric: _json_test(pair.id, level),
        "p_different": pair.p_different,
        "p_better": pair.p_better,
        "p_worse": pair.p_worse,
        "p_different_holm": verdict.p_different,
        "p_better_holm": verdict.p_better,
        "p_worse_holm": verdict.p_worse,
        "compared": verdict.compared,
        "seeds_required": verdict.seeds,
        "settings_tried": verdict.tried,
        "confirmed": pair.candidate.confirms or pair.reference.confirms,
        "state": verdict.state,
        "outcome": verdict.outcome,
        "id_state": verdict.id_state,
        "endpoint": endpoint.metric,
        "power": _json_power(verdict, endpoint.margin),
    }


def _json_curve(verdict: CurveVerdict) -> dict[str, Any]:
    pair = verdict.pair
    return {
        "candidate": pair.candidate.label,
        "reference": pair.reference.label,
        "seeds": pair.seeds,
        "seeds_required": verdict.seeds,
        "common_range": pair.common_range,
        "gain": _json_test(pair.gain, verdict.gain_level),
        "loss": _json_test(pair.loss, verdict.loss_level),
        "difference": pair.difference,
        "interval": verdict.interval,
        "slack": pair.slack,
        "p_better_holm": verdict.p_better,
        "p_worse_holm": verdict.p_worse,
        "compared": verdict.compared,
        "settings_tried": verdict.tried,
        "state": verdict.state,
        "outcome": verdict.outcome,
        "power": _json_power(verdict, pair.endpoint.ood_margin),
    }


def _json_power(verdict: Verdict | CurveVerdict, margin: float) -> dict[str, Any] | None:
    power, seeds = verdict.power, len(verdict.pair.seeds)
    if power is None:
        return None
    return {
        "smallest_difference": power.smallest_difference(seeds),
        "margin": margin,
        "seeds_for_margin": power.seeds_for(margin, seeds),
    }


def _json_tasks(table: DomainBedTable) -> dict[str, Any]:
    def of(cell: TaskCell) -> dict[str, Any]:
        seeds = [{"seed": seed, "value": value} for seed, value in cell.by_seed.items()]
        return {"mean": cell.mean, "error": cell.error, "values": seeds}

    return {
        "metrics": dict(table.endpoints),
        "caption": " ".join(table.notes),
        "settings": dict(table.settings),
        "rows": [
            {
                "label": line.arm.label,
                "cells": {task: of(cell) for task, cell in line.cells.items()},
                "average": of(line.average),
            }
            for line in table.lines
        ],
    }


def owners_of(row: Row, owners: Owners) -> list[str]:
    """Return the names of the sweeps that have a run of the row `row`."""
    # A mean over tasks is of several runs.
    digests = (digest for run in row.arm.runs for digest in run.digest.split(TOGETHER))
    return list(dict.fromkeys(name for digest in digests for name in owners.get(digest, ())))


def rows_frame(comparison: Comparison, *, intervals: bool = False) -> pd.DataFrame:
    """Return a frame with a line per row: its names, varied fields, and the mean of each metric.
    Fractions, not percent; NaN where a row has no mean. With `intervals` the ends of the 95 % t
    interval over seeds follow each mean, as `<metric> low` and `<metric> high`."""
    return _frame([_frame_row(row, intervals=intervals) for row in comparison.rows])


def runs_frame(comparison: Comparison) -> pd.DataFrame:
    """Return a frame with a line per run and evaluated model, in any state; metrics of done runs.
    `merge` is None for the model that the run trained, else the merge's label. With several tasks
    the frame has the runs of all, and a column with the task."""
    if (field := comparison.spec.tasks) is not None and comparison.tasks:
        tasks = comparison.tasks.items()
        lines = [{field: task, **line} for task, part in tasks for line in _frame_runs(part)]
    else:
        lines = [*_frame_runs(comparison)]
    return _frame(lines)


def _frame_runs(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for row in comparison.rows:
        for run in row.arm.runs if row.arm.merge is None else ():
            for merge in (None, *run.merges):
                yield {
                    "setting": row.arm.label,
                    "algorithm": run.algorithm,
                    "merge": merge,
                    "role": run.role,
                    "trial": run.trial,
                    "seed": run.seed,
                    "state": run.state,
                    "digest": run.digest,
                    **run.params,
                    **run.metrics_of(merge),
                }


def _frame_row(row: Row, *, intervals: bool, values: bool = False) -> dict[str, Any]:
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
    for name, estimate in row.metrics.items():
        line[name] = estimate.mean
        if intervals:
            line[f"{name} low"], line[f"{name} high"] = estimate.ci95 or (None, None)
        if values:
            line[f"{name} values"] = json.dumps(estimate.values)
    return line


def _frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """Return mappings as the rows of a frame, with missing values for keys that a row lacks."""
    import pandas as pd

    frame = pd.DataFrame(lines, columns=_columns(lines))
    return frame.astype({name: "Int64" for name in ("trial", "seed", "n") if name in frame})


def _columns(lines: list[dict[str, Any]], first: Sequence[str] = ()) -> list[str]:
    """Return the columns of `lines`: `first`, others, then metrics in the order of tables."""
    names = dict.fromkeys([*first, *(name for line in lines for name in line)])
    metrics = sorted((name for name in names if "/" in name), key=_column_order)
    return [*(name for name in names if "/" not in name), *metrics]


_ENDS = ("", "low", "high", "values")


def _column_order(name: str) -> tuple[object, ...]:
    metric, _, end = name.rpartition(" ")
    return (*metric_order(metric), _ENDS.index(end)) if end in _ENDS else (*metric_order(name), 0)


def to_csv(
    comparison: Comparison, *, options: TableOptions | None = None, owners: Owners | None = None
) -> str:
    """Return `rows_frame` with intervals and the seeds' values as CSV; fractions. With several
    tasks mean and standard error come last. The metrics are all, or those that the options name.
    With `owners` each row names the sweeps of its runs."""
    options = options or TableOptions()
    table = domainbed_table(comparison)
    lines: list[dict[str, Any]] = []
    for row in comparison.rows:
        line = _frame_row(row, intervals=True, values=True)
        if data := datasets(row.arm.done):
            line["data"] = "; ".join(data)
        if owners is not None:
            line["sweeps"] = " ".join(owners_of(row, owners))
        lines.append(line)
    names = _columns(lines, ("setting", "algorithm", "merge"))
    if options.columns:
        columns = resolve_columns(comparison, options.columns)
        wanted = [f"{column.metric} {end}".rstrip() for column in columns for end in _ENDS]
        plain = [name for name in names if "/" not in name]
        names = [*plain, *(name for name in wanted if name in names)]
    if table is not None:
        for task in (*table.endpoints, AVERAGE):
            names += [f"{task} mean", f"{task} error"]
            for row, line in zip(comparison.rows, lines, strict=True):
                of_row = table.of(row.arm)
                cells = {} if of_row is None else {**of_row.cells, AVERAGE: of_row.average}
                if (cell := cells.get(task)) is not None:
                    line |= {f"{task} mean": cell.mean, f"{task} error": cell.error}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_plain_cell, names))
    writer.writerows([_plain_cell(line.get(name)) for name in names] for line in lines)
    return text.getvalue()


def _plain_cell(value: Any) -> Any:
    """Return a value with `'` before a text that a spreadsheet would compute; numbers stay, NaN is
    left out. Names of a foreign home or server are only text."""
    if not isinstance(value, str):
        return None if value != value else value
    text = value.replace("\r", " ")  # which is not quoted, and would begin a line
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def markdown(comparison: Comparison, *, options: TableOptions | None = None) -> str:
    """Return a section of a page: warnings as a list, the table, the notes, the verdict."""
    options = options or TableOptions()
    table = build_table(comparison, options)
    lines = [f"- **Note:** {_escape_markdown(warning)}" for warning in comparison.warnings]
    lines += [""] if lines else []
    if (tasks := task_table(comparison)) is not None:
        lines += [*_markdown_table(tasks), "", _escape_markdown(" ".join(tasks.notes)), ""]
    lines += _markdown_table(table)
    lines += ["", _escape_markdown(f"{table.title}. {' '.join(table.notes)}"), ""]
    lines += [f"- {_escape_markdown(line)}" for line in comparison.answer.lines]
    if comparison.statistics:
        lines += ["", *map(_escape_markdown, comparison.statistics)]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> Iterator[str]:
    yield _markdown_line(table.heads)
    yield "| --- |" + " ---: |" * (len(table.heads) - 1)
    for line in table.lines:
        name = line.name.strip()
        cells = (cell.text for cell in line.cells)
        yield _markdown_line([f"**{name}**" if line.selected else name, *cells])


def _markdown_line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(_escape_markdown(text) for text in texts)} |"


def _escape_markdown(text: str) -> str:
    """Return a text with escapes of what would begin a cell, HTML, link, image or line."""
    escapes = (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("](", "]\\("), ("\n", " "))
    for special, plain in escapes:
        text = text.replace(special, plain)
    return text


_ESCAPES = str.maketrans(
    {
        **{char: f"\\{char}" for char in "{}#$%&_"},
        "\n": " ",
        "\\": r"\textbackslash{}",
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
    }
)


def latex(comparison: Comparison, *, options: TableOptions | None = None, command: str = "") -> str:
    """Return a `tabular` for `booktabs`; above it as comments `command`, title and verdict. Small
    print below explains signs and numbers. With several tasks their table comes first."""
    table = build_table(comparison, options or TableOptions())
    warnings = [f"! {warning}" for warning in comparison.warnings]
    comments = [
        r"Needs \usepackage{booktabs}.",
        *warnings,
        f"{table.title}.",
        *comparison.answer.lines,
        *comparison.statistics,
    ]
    # No name may end a comment.
    lines = [f"% {' '.join(line.split())}" for line in ([command] if command else []) + comments]
    if (tasks := task_table(comparison)) is not None:
        lines += [*_latex_table(tasks), r"\bigskip"]
    return "\n".join([*lines, *_latex_table(table)]) + "\n"


def _latex_table(table: Table) -> list[str]:
    rows = [[_latex_name(line.name.strip()), *map(_latex_cell, line.cells)] for line in table.lines]
    head, *body = (f"{' & '.join(row)} \\\\" for row in [map(escape_latex, table.heads), *rows])
    return [
        rf"\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
        *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
        *(r"\end{tabular}", r"\par\smallskip"),
        rf"{{\footnotesize {escape_latex(' '.join(table.notes))}\par}}",
    ]


def _latex_name(name: str) -> str:
    # Behind the end of a row [ and * would be options of it.
    return f"{'{}' if name.startswith(('[', '*')) else ''}{escape_latex(name)}"


def _latex_cell(cell: Cell) -> str:
    # With a minus as long as a plus.
    digits = escape_latex(cell.number.removeprefix("-"))
    number = f"$-${digits}" if cell.number.startswith("-") else digits
    if cell.half.startswith(" "):  # as DomainBed prints it
        return rf"{number} $\pm${cell.half}"
    return rf"{number} {{\scriptsize $\pm${cell.half}}}" if cell.half else number


def escape_latex(text: str) -> str:
    """Return a text escaped for LaTeX; a character without a rule stays as it is (UTF-8)."""
    return text.translate(_ESCAPES)
