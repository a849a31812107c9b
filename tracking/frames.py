"""A comparison as pandas frames, for notebooks: a line per row of the table, or per run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracking.compare import Comparison, Row, metric_order
from tracking.records import RunRecord

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
