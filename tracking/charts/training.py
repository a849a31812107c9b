"""Learning curves, and the cost of runs."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from carft_sweep.regular_files import read_regular
from carft_sweep.tracking.charts import palette
from carft_sweep.tracking.charts.base import (
    Chart,
    Marks,
    Picture,
    inline_data,
    interval_rules,
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
SPEED = "system/images_per_s"
MOST_LEARNING = 12
"""Settings of which learning curves are drawn."""
MOST_PRUNED = 30
_HEIGHT = 260
_MEAN = "mean"
_FEW = 12
"""Epochs that have a tick each."""


@dataclass(frozen=True)
class History:
    """The epochs of one run; epoch 0 is the model before training."""

    seconds: float
    """Of training, without evaluation."""
    metrics: Sequence[Mapping[str, float]]
    """By epoch; finite numbers only."""

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric by epoch, where it was measured."""
        return {epoch: each[metric] for epoch, each in enumerate(self.metrics) if metric in each}


def read_history(run: RunRecord) -> History | None:
    """Read a run's `history.json`; None where it is missing here, or damaged."""
    if run.folder is None:
        return None
    try:
        epochs = json.loads(read_regular(run.folder / "history.json"))
        metrics = [_finite(epoch["metrics"]) for epoch in epochs]
        seconds = sum(float(epoch["seconds"]) for epoch in epochs)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.debug("no history of %s: %s", run.digest, error)
        return None
    return History(seconds, metrics) if metrics else None


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def _histories(row: Row, state: str = "done") -> list[History]:
    read = (read_history(run) for run in row.arm.runs if run.state == state)
    return [history for history in read if history is not None]


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
    legend = palette.legend_of_rows(drawn, data.algorithms)
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
    curves = [history.values(metric) for history in histories]
    shared = set.intersection(*map(set, curves)) if curves else set()
    values = {epoch: [curve[epoch] for curve in curves] for epoch in sorted(shared)}
    return [
        {
            "epoch": epoch,
            _MEAN: scaled(metric, mean(each)),
            "low": scaled(metric, min(each)),
            "high": scaled(metric, max(each)),
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
    low = alt.Y(field="low", type="quantitative", title=titled(metric))
    number_format = tooltip_format(metric)
    fields = [(name, number_format) for name in (_MEAN, "low", "high")]
    dots = finished.encode(
        y, *legend.symbols(), tooltip=tooltips("setting", ("epoch", "d"), *fields)
    )
    layers = [
        shown.mark_area(opacity=0.15, aria=False).encode(low, alt.Y2("high")),
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


_BAR = 34
_SPACE = "indexof(datum.label, ' ')"
_TWO_LINES = alt.Axis(
    labelLimit=140,
    labelExpr=f"{_SPACE} < 0 ? datum.label : "
    f"[slice(datum.label, 0, {_SPACE}), slice(datum.label, {_SPACE} + 1)]",
)
"""The algorithm above its setting, which is too long for a phone beside it."""
_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
_OPACITY: Mapping[str, float] = {
    "done": 1.0,
    "pruned": 0.7,
    "stopped": 0.55,
    "failed": 0.4,
    "running": 0.3,
    "missing": 0.15,
}
"""Of a bar's part by the state of its runs, in the order of the parts."""


def draw_cost(data: ChartData) -> Picture | None:
    """Draw time and speed of training and how runs ended; None where nothing is trained."""
    counts = run_counts(data)
    if not counts:
        return None
    charts: list[alt.Chart | alt.LayerChart] = [*_cost_panels(data), _count_panel(data, counts)]
    description = f"Cost of {sum(sum(states.values()) for states in counts.values())} runs"
    return panels(charts, description, most=3, margin=150, least=360, independent=["color"])


def _cost_panels(data: ChartData) -> list[alt.LayerChart]:
    read = [(row, histories) for row in data.trained if (histories := _histories(row))]
    if not read:
        return []
    longest = max(history.seconds for _, histories in read for history in histories)
    factor, unit = next((size, name) for size, name in _UNITS if longest >= size or size == 1)
    time, speed = f"training per run ({unit})", "images per second"
    rows: list[dict[str, Any]] = []
    for row, histories in read:
        seconds = [history.seconds for history in histories]
        speeds = [value for history in histories for value in history.values(SPEED).values()]
        rows.append(
            {
                "setting": row.arm.label,
                time: round(mean(seconds) / factor, 3),
                f"{time} low": round(min(seconds) / factor, 3),
                f"{time} high": round(max(seconds) / factor, 3),
                "epochs": max(len(history.metrics) - 1 for history in histories),
                "runs": len(seconds),
                **({speed: round(mean(speeds), 1)} if speeds else {}),
            }
        )
    legend = palette.legend_of_rows({row.arm.label: row for row, _ in read}, data.algorithms)
    fields = [field for field in (time, speed) if any(field in row for row in rows)]
    return [_cost_bars(rows, legend, field) for field in fields]


def _cost_bars(rows: list[dict[str, Any]], legend: Legend, field: str) -> alt.LayerChart:
    base = Marks(inline_data(rows)).encode(
        alt.Y("setting:N", sort=list(legend.styles), title=None, axis=_TWO_LINES),
        alt.X(**quantitative(field, field, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))),
    )
    hints = tooltips("setting", (field, ".3~g"), ("epochs", "d"), ("runs", "d"))
    bars = base.mark_bar().encode(legend.colour(legend=False), tooltip=hints)
    return layered([bars, *interval_rules(base, "x", field, rows)], _BAR * len(rows))


def run_counts(data: ChartData) -> dict[str, Counter[str]]:
    """Count runs by algorithm and state, those of all tasks together, in the order of the table."""
    counts: dict[str, Counter[str]] = {}
    comparison = data.comparison
    for part in comparison.tasks.values() if comparison.tasks else (comparison,):
        for row in part.rows:
            if row.arm.merge is None and row.arm.trains:
                counts.setdefault(row.arm.algorithm, Counter()).update(row.arm.states)
    return counts


def _count_panel(data: ChartData, counts: Mapping[str, Counter[str]]) -> alt.Chart:
    rows = [
        {"algorithm": name, "state": state, "runs": count, "rank": list(_OPACITY).index(state)}
        for name, states in counts.items()
        for state, count in states.items()
    ]
    names = list(counts)
    colours = [palette.colour_of(name, data.algorithms) for name in names]
    states = [state for state in _OPACITY if any(row["state"] == state for row in rows)]
    paler = alt.Scale(type="ordinal", domain=states, range=[_OPACITY[s] for s in states])
    legend = alt.Legend(orient="bottom", title=None, symbolFillColor=NEUTRAL)
    axis = alt.Axis(tickMinStep=1, format="d", labelFlush=False)
    bars = Marks(inline_data(rows), height=_BAR * len(names)).mark_bar()
    panel: alt.Chart = bars.encode(
        alt.Y("algorithm:N", sort=names, title=None, axis=alt.Axis(labelLimit=130)),
        alt.X("runs:Q", title="runs", axis=axis),
        alt.Color("algorithm:N", scale=alt.Scale(domain=names, range=colours), legend=None),
        alt.Opacity(
            "state:N", sort=states, scale=paler, legend=legend if len(states) > 1 else None
        ),
        alt.Order("rank:Q"),
        tooltip=tooltips("algorithm", "state", ("runs", "d")),
    )
    return panel


COST = Chart(
    name="cost",
    title="Cost",
    about=(
        "Training of one run without evaluation, mean over seeds with the range behind it, on the "
        "machine that did it: runs that shared it slowed each other. Merges cost no training. The "
        "number of runs says how much was spent on tuning each algorithm."
    ),
    draw=draw_cost,
    folded=True,
)
