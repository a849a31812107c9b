"""Training loss and validation accuracy by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from tracking.charts import marks, palette
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import layered, panels
from tracking.charts.measures import form, scaled, titled
from tracking.charts.palette import NEUTRAL, Signs
from tracking.evidence import LOSS, Evidence
from tracking.evidence.learning import LearningCurve

_HEIGHT = 260
_VALUE = "mean"
_FEW = 12
"""Epochs that have a tick each."""


def draw(evidence: Evidence) -> Picture | None:
    """None where no run on show has its history here."""
    curves = [curve for curve in evidence.learning if curve.standing != "pruned"]
    if not curves:
        return None
    signs = palette.of_rows(
        {curve.row.arm.label: curve.row for curve in curves}, evidence.algorithms
    )
    charts = [
        _panel(metric, [curve for curve in evidence.learning if curve.metric == metric], signs)
        for metric in (LOSS, evidence.comparison.terms.val)
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
    y = alt.Y(**marks.number(_VALUE, titled(metric)))
    rows = alt.Chart(marks.data(_rows(metric, finished))).encode(x, signs.colour())
    hints = marks.hints("setting", ("epoch", "d"), (_VALUE, form(metric)))
    hints += marks.hints(("low", form(metric)), ("high", form(metric)))
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
        faint = alt.Chart(marks.data(_rows(metric, pruned))).mark_line(
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


CHART = Chart(
    name="learning",
    title="Learning curves",
    about=(
        "Mean over seeds. The band behind what stands for its algorithm reaches from the lowest to "
        "the highest seed; thin lines are the best other settings, grey ones pruned. Training "
        "losses of different algorithms are different sums: compare their course, not their height."
    ),
    draw=draw,
)
