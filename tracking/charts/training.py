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
from carft_sweep.tracking.charts.palette import Legend
from carft_sweep.tracking.comparison.compare import Row
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.statistics import mean

logger = logging.getLogger(__name__)

LOSS = "train/loss"
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


def draw_learning(data: ChartData) -> Picture | None:
    """Draw training loss and validation accuracy; None where no run on show has its history."""
    metrics = (LOSS, data.comparison.endpoint.val)
    points: dict[str, list[dict[str, Any]]] = {metric: [] for metric in metrics}
    drawn: dict[str, Row] = {}
    for row in data.shown:
        if row.arm.merge is not None or not row.arm.trains:
            continue
        histories = [history for run in row.arm.done if (history := read_history(run))]
        for metric in metrics:
            for point in _curve(metric, histories):
                points[metric].append({"setting": row.arm.label, **point})
                drawn[row.arm.label] = row
    if not drawn:
        return None
    legend = palette.legend_of_rows(drawn.values(), data.algorithms)
    charts = [_panel(metric, rows, legend) for metric, rows in points.items() if rows]
    return panels(
        charts, f"Training loss and validation accuracy by epoch of {len(drawn)} settings"
    )


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


def _panel(metric: str, points: Sequence[dict[str, Any]], legend: Legend) -> alt.LayerChart:
    last = max(point["epoch"] for point in points)
    axis = alt.Axis(format="d", labelOverlap=True)
    if last <= _FEW:
        axis["values"] = list(range(last + 1))
    x = alt.X("epoch:Q", title="epoch", axis=axis, scale=alt.Scale(domain=[0, last], nice=False))
    y = alt.Y(**quantitative(_MEAN, titled(metric)))
    low = alt.Y(field=_LOWEST, type="quantitative", title=titled(metric))
    number_format = tooltip_format(metric)
    ends = [
        alt.Tooltip(field=name, type="quantitative", format=number_format, title=name)
        for name in (_LOWEST, _HIGHEST)
    ]
    hints = [*tooltips("setting", ("epoch", "d"), (_MEAN, number_format)), *ends]
    place = alt.Chart(inline_data(points)).encode(x)
    lines = place.encode(legend.colour())
    dots = place.encode(y, *legend.symbols(), tooltip=hints)
    layers = [
        lines.mark_area(opacity=0.15, aria=False).encode(low, alt.Y2(field=_HIGHEST)),
        lines.mark_line(strokeWidth=2.5).encode(y),
        dots.mark_point(filled=False, size=30, aria=False),
    ]
    return layered(layers, _HEIGHT)


LEARNING = Chart(
    name="learning",
    title="Learning curves",
    about=(
        "Mean over seeds of the settings in the table above; bands are lowest to highest seed. "
        "Training losses of different algorithms are different sums: compare their course, not "
        "their height. The curves of every other run are in MLflow."
    ),
    draw=draw_learning,
    folded=True,
)
