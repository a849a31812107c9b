"""Learning curves, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from tracking.charts import base, palette
from tracking.charts.base import (
    Chart,
    Picture,
    form,
    inline_data,
    interval,
    layered,
    panels,
    quantitative,
    scaled,
    titled,
    tooltips,
)
from tracking.charts.palette import NEUTRAL, Signs
from tracking.comparison.statistics import mean
from tracking.evidence.data import LOSS, Evidence
from tracking.evidence.training import LearningCurve

_HEIGHT = 260
_VALUE = "mean"
_FEW = 12
"""Epochs that have a tick each."""


def draw_learning(evidence: Evidence) -> Picture | None:
    """None where no run on show has its history here."""
    curves = [curve for curve in evidence.learning if curve.standing != "pruned"]
    if not curves:
        return None
    signs = palette.of_rows(
        {curve.row.arm.label: curve.row for curve in curves}, evidence.algorithms
    )
    charts = [
        _panel(metric, [curve for curve in evidence.learning if curve.metric == metric], signs)
        for metric in (LOSS, evidence.comparison.endpoint.val)
        if any(curve.metric == metric for curve in curves)
    ]
    told = f"Training loss and validation accuracy by epoch of {len(signs.entries)} settings"
    return panels(charts, told)


def _panel(metric: str, curves: Sequence[LearningCurve], signs: Signs) -> alt.LayerChart:
    finished = [curve for curve in curves if curve.standing != "pruned"]
    pruned = [curve for curve in curves if curve.standing == "pruned"]
    last = max(point.epoch for curve in curves for point in curve.epochs)
    axis = alt.Axis(format="d", labelOverlap=True)
    if last <= _FEW:
        axis["values"] = list(range(last + 1))
    x = alt.X("epoch:Q", title="epoch", axis=axis, scale=alt.Scale(domain=[0, last], nice=False))
    y = alt.Y(**base.quantitative(_VALUE, titled(metric)))
    rows = alt.Chart(base.inline_data(_rows(metric, finished))).encode(x, signs.colour())
    hints = base.tooltips("setting", ("epoch", "d"), (_VALUE, form(metric)))
    hints += base.tooltips(("low", form(metric)), ("high", form(metric)))
    shown = "datum.standing == 'shown'"
    lines = rows.encode(y, signs.dash())
    layers = [
        rows.transform_filter(shown)
        .mark_area(opacity=0.15, aria=False)
        .encode(alt.Y(field="low", type="quantitative", title=titled(metric)), alt.Y2("high")),
        lines.transform_filter(shown).mark_line(strokeWidth=2.5),
        lines.transform_filter(f"!({shown})").mark_line(strokeWidth=1.2, opacity=0.8),
        rows.encode(y, signs.shape(), tooltip=hints).mark_point(filled=True, size=45, aria=False),
    ]
    if pruned:
        faint = alt.Chart(base.inline_data(_rows(metric, pruned))).mark_line(
            color=NEUTRAL, opacity=0.35, strokeWidth=1, aria=False
        )
        layers.insert(0, faint.encode(x, y, alt.Detail("setting:N")))
    return layered(layers, _HEIGHT)


def _rows(metric: str, curves: Sequence[LearningCurve]) -> list[dict[str, Any]]:
    return [
        {
            "setting": curve.row.arm.label,
            "standing": curve.standing,
            "epoch": point.epoch,
            _VALUE: scaled(metric, point.mean),
            "low": scaled(metric, point.low),
            "high": scaled(metric, point.high),
        }
        for curve in curves
        for point in curve.epochs
    ]


LEARNING = Chart(
    name="learning",
    title="Learning curves",
    about=(
        "Mean over seeds. The band behind what stands for its algorithm reaches from the lowest to "
        "the highest seed; thin lines are the best other settings, grey ones pruned. Training "
        "losses of different algorithms are different sums: compare their course, not their height."
    ),
    draw=draw_learning,
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


def draw_cost(evidence: Evidence) -> Picture | None:
    """None where nothing is trained."""
    if not evidence.runs:
        return None
    charts: list[alt.Chart | alt.LayerChart] = [*_settings(evidence), _runs(evidence)]
    told = f"Cost of {sum(part.count for part in evidence.runs)} runs"
    return panels(charts, told, most=3, margin=150, least=360, independent=["color"])


def _settings(evidence: Evidence) -> list[alt.LayerChart]:
    if not evidence.cost:
        return []
    signs = palette.of_rows(
        {item.row.arm.label: item.row for item in evidence.cost}, evidence.algorithms
    )
    longest = max(max(item.seconds) for item in evidence.cost)
    factor, unit = next((size, name) for size, name in _UNITS if longest >= size or size == 1)
    time, speed = f"training per run ({unit})", "images per second"
    rows: list[dict[str, Any]] = [
        {
            "setting": item.row.arm.label,
            time: round(mean(item.seconds) / factor, 3),
            f"{time} low": round(min(item.seconds) / factor, 3),
            f"{time} high": round(max(item.seconds) / factor, 3),
            "epochs": item.epochs,
            "runs": len(item.seconds),
            **({} if item.images_per_s is None else {speed: round(item.images_per_s, 1)}),
        }
        for item in evidence.cost
    ]
    return [
        _bars(rows, signs, field) for field in (time, speed) if any(field in row for row in rows)
    ]


def _bars(rows: list[dict[str, Any]], signs: Signs, field: str) -> alt.LayerChart:
    base = alt.Chart(inline_data(rows)).encode(
        alt.Y("setting:N", sort=list(signs.entries), title=None, axis=_TWO_LINES),
        alt.X(**quantitative(field, field, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))),
    )
    hints = tooltips("setting", (field, ".3~g"), ("epochs", "d"), ("runs", "d"))
    bars = base.mark_bar().encode(signs.colour(legend=False), tooltip=hints)
    return layered([bars, *interval(base, "x", field, rows)], _BAR * len(rows))


def _runs(evidence: Evidence) -> alt.Chart:
    rows = [
        {
            "algorithm": part.algorithm,
            "state": part.state,
            "runs": part.count,
            "rank": list(_OPACITY).index(part.state),
        }
        for part in evidence.runs
    ]
    names = list(dict.fromkeys(part.algorithm for part in evidence.runs))
    colours = [palette.colour_of(name, evidence.algorithms) for name in names]
    states = [state for state in _OPACITY if any(row["state"] == state for row in rows)]
    paler = alt.Scale(type="ordinal", domain=states, range=[_OPACITY[s] for s in states])
    legend = alt.Legend(orient="bottom", title=None, symbolFillColor=NEUTRAL)
    shown = legend if len(states) > 1 else None
    bars: alt.Chart = (
        alt.Chart(inline_data(rows), height=_BAR * len(names))
        .mark_bar()
        .encode(
            alt.Y("algorithm:N", sort=names, title=None, axis=alt.Axis(labelLimit=130)),
            alt.X(
                "runs:Q", title="runs", axis=alt.Axis(tickMinStep=1, format="d", labelFlush=False)
            ),
            alt.Color("algorithm:N", scale=alt.Scale(domain=names, range=colours), legend=None),
            alt.Opacity("state:N", sort=states, scale=paler, legend=shown),
            alt.Order("rank:Q"),
            tooltip=tooltips("algorithm", "state", ("runs", "d")),
        )
    )
    return bars


COST = Chart(
    name="cost",
    title="Cost",
    about=(
        "Training of one run without evaluation, mean over seeds with the range behind it, on the "
        "machine that did it: runs that shared it slowed each other. Merges cost no training. The "
        "number of runs says how much was spent on tuning each algorithm."
    ),
    draw=draw_cost,
)
