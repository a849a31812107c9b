"""Learning curves."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from carft_sweep.regular_files import read_regular
from carft_sweep.tracking.charts import palette
from carft_sweep.tracking.charts.base import (
    Chart,
    Marks,
    Picture,
    inline_data,
    layered,
    panels,
    quantitative,
    scaled,
    titled,
    tooltip_format,
    tooltips,
)
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.palette import NEUTRAL, Legend
from carft_sweep.tracking.comparison.compare import Row
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.statistics import mean

logger = logging.getLogger(__name__)

LOSS = "train/loss"
MOST_LEARNING = 12
"""Settings of which learning curves are drawn."""
MOST_PRUNED = 30
_HEIGHT = 260
_MEAN, _LOWEST, _HIGHEST = "mean", "lowest seed", "highest seed"
_FEW = 12
"""Epochs that have a tick each."""


History = Sequence[Mapping[str, float]]
"""Finite metrics of a run by epoch; epoch 0 is the model before training."""


def read_history(run: RunRecord) -> History:
    """Read a run's `history.json`; nothing where it is missing here, or damaged."""
    if run.folder is None:
        return ()
    try:
        epochs = json.loads(read_regular(run.folder / "history.json"))
        return [_finite(epoch["metrics"]) for epoch in epochs]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.debug("no history of %s: %s", run.digest, error)
        return ()


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def _histories(row: Row, state: str) -> list[History]:
    read = (read_history(run) for run in row.arm.runs if run.state == state)
    return [history for history in read if history]


def draw_learning(data: ChartData) -> Picture | None:
    """Draw training loss and validation accuracy; None where no run on show has its history."""
    metrics = (LOSS, data.comparison.endpoint.val)
    points: dict[str, list[dict[str, Any]]] = {metric: [] for metric in metrics}
    drawn: dict[str, Row] = {}
    for standing, row in _learners(data):
        histories = _histories(row, "pruned" if standing == "pruned" else "done")
        for metric in metrics:
            curve = _curve(metric, histories)
            points[metric] += [
                {"setting": row.arm.label, "standing": standing, **point} for point in curve
            ]
            if curve and standing != "pruned":
                drawn[row.arm.label] = row
    if not drawn:
        return None
    legend = palette.legend_of_rows(drawn.values(), data.algorithms)
    charts = [
        _learning_panel(metric, rows, legend)
        for metric, rows in points.items()
        if any(row["standing"] != "pruned" for row in rows)
    ]
    description = f"Training loss and validation accuracy by epoch of {len(drawn)} settings"
    return panels(charts, description)


def _learners(data: ChartData) -> list[tuple[str, Row]]:
    """Choose the rows on show, then the best others, then some that were pruned."""
    better = data.comparison.rule.better
    labels = {row.arm.label for row in data.trained}
    others = [
        (better(value), row)
        for row in data.settings
        if row.arm.trains and row.arm.label not in labels and (value := data.value(row)) is not None
    ]
    best = [row for _, row in sorted(others, key=lambda item: -item[0])]
    pruned = [row for row in data.comparison.rows if row.arm.states.get("pruned") and not row.n]
    return [
        *(("shown", row) for row in data.trained),
        *(("best", row) for row in best[: max(0, MOST_LEARNING - len(data.trained))]),
        *(("pruned", row) for row in pruned[:MOST_PRUNED]),
    ]


def _curve(metric: str, histories: Sequence[History]) -> list[dict[str, float]]:
    """Compute mean and range over seeds at the epochs that every seed has."""
    curves = [
        {epoch: measured[metric] for epoch, measured in enumerate(history) if metric in measured}
        for history in histories
    ]
    shared = set.intersection(*map(set, curves)) if curves else set()
    values = {epoch: [curve[epoch] for curve in curves] for epoch in sorted(shared)}
    return [
        {
            "epoch": epoch,
            _MEAN: scaled(metric, mean(each)),
            _LOWEST: scaled(metric, min(each)),
            _HIGHEST: scaled(metric, max(each)),
        }
        for epoch, each in values.items()
    ]


def _learning_panel(
    metric: str, points: Sequence[dict[str, Any]], legend: Legend
) -> alt.LayerChart:
    last = max(point["epoch"] for point in points)
    axis = alt.Axis(format="d", labelOverlap=True)
    if last <= _FEW:
        axis["values"] = list(range(last + 1))
    x = alt.X("epoch:Q", title="epoch", axis=axis, scale=alt.Scale(domain=[0, last], nice=False))
    y = alt.Y(**quantitative(_MEAN, titled(metric)))
    place = Marks(inline_data(points)).encode(x)
    finished = place.transform_filter("datum.standing != 'pruned'")
    shown = place.transform_filter("datum.standing == 'shown'").encode(legend.colour())
    best = place.transform_filter("datum.standing == 'best'").encode(legend.colour())
    low = alt.Y(field=_LOWEST, type="quantitative", title=titled(metric))
    number_format = tooltip_format(metric)
    ends = [
        alt.Tooltip(field=name, type="quantitative", format=number_format, title=name)
        for name in (_LOWEST, _HIGHEST)
    ]
    hints = [*tooltips("setting", ("epoch", "d"), (_MEAN, number_format)), *ends]
    dots = finished.encode(y, *legend.symbols(), tooltip=hints)
    layers = [
        shown.mark_area(opacity=0.15, aria=False).encode(low, alt.Y2(field=_HIGHEST)),
        shown.mark_line(strokeWidth=2.5).encode(y, legend.dash()),
        best.mark_line(strokeWidth=1.2, opacity=0.8).encode(y, legend.dash()),
        dots.mark_point(filled=False, size=30, aria=False),
    ]
    if any(point["standing"] == "pruned" for point in points):
        pruned = place.transform_filter("datum.standing == 'pruned'")
        faint = pruned.mark_line(color=NEUTRAL, opacity=0.35, strokeWidth=1, aria=False)
        layers.insert(0, faint.encode(y, alt.Detail("setting:N")))
    return layered(layers, _HEIGHT)


LEARNING = Chart(
    name="learning",
    title="Learning curves",
    about=(
        "Mean over seeds. Bands, of one setting of each algorithm: lowest to highest seed; thin "
        "lines are the best other settings, grey ones pruned. Training losses of "
        "different algorithms are different sums: compare their course, not their height."
    ),
    draw=draw_learning,
    folded=True,
)
