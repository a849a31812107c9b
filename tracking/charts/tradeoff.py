"""ID against OOD accuracy, with the Pareto front and WiSE-FT curves."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import altair as alt

from tracking.charts import palette
from tracking.charts.base import (
    Chart,
    Picture,
    inline_data,
    interval_ends,
    interval_rules,
    percent,
    quantitative,
    single,
    titled,
    tooltips,
)
from tracking.charts.data import ChartData
from tracking.charts.palette import NEUTRAL, Legend
from tracking.comparison.metrics import TOP1, named
from tracking.comparison.runs import split_merge
from tracking.comparison.statistics import Estimate
from tracking.comparison.wise_ft import WISE, Curve

_HEIGHT = 420
_Rows = list[dict[str, Any]]


class _Axes(NamedTuple):
    """The metrics to the right and upwards; rows hold them under their names."""

    id_metric: str
    ood_metric: str

    @property
    def id(self) -> str:
        return named(self.id_metric)

    @property
    def ood(self) -> str:
        return named(self.ood_metric)

    @property
    def x(self) -> alt.X:
        return alt.X(**quantitative(self.id, titled(self.id_metric)))

    @property
    def y(self) -> alt.Y:
        return alt.Y(**quantitative(self.ood, titled(self.ood_metric)))


def draw_id_ood(data: ChartData) -> Picture | None:
    """Draw every model as a point; None where no model has both accuracies."""
    endpoint = data.comparison.endpoint
    axes = _Axes(endpoint.id_metric, endpoint.ood)
    models = _model_rows(data, axes)
    if not models:
        return None
    legend = _legend(data, models)
    layers = [
        *_draw_curves(data, legend, axes),
        *_draw_distances(_distance_rows(data, axes), axes),
        *_draw_models(models, legend, axes),
    ]
    kind = "" if endpoint.by != TOP1 else " accuracy"
    description = f"{axes.id} against {axes.ood}{kind} of {len(models)} models"
    return single(layers, _HEIGHT, description, models)


def pareto_front(points: Iterable[tuple[float, float]]) -> set[tuple[float, float]]:
    """Return the points that no other one reaches on both coordinates and beats on one."""
    front: set[tuple[float, float]] = set()
    highest = float("-inf")
    for x, y in sorted(set(points), reverse=True):
        if y > highest:
            front.add((x, y))
            highest = y
    return front


def _model_rows(data: ChartData, axes: _Axes) -> _Rows:
    """List every setting, what stands for its merges, and the inner points of the curves."""
    shown = {row.arm.label for row in data.shown}
    models: dict[str, dict[str, Any]] = {}
    for row in (*data.settings, *data.shown):
        label, id_test, ood = row.arm.label, row.metric(axes.id_metric), row.metric(axes.ood_metric)
        if id_test.mean is not None and ood.mean is not None:
            models[label] = {
                "setting": label,
                "series": _series(row.arm.algorithm, row.arm.merge),
                axes.id: percent(id_test.mean),
                axes.ood: percent(ood.mean),
                "on show": label in shown,
                "runs": row.n,
                **(_intervals(id_test, ood, axes) if label in shown else {}),
            }
    algorithms = {row.arm.label: row.arm.algorithm for row in data.comparison.rows}
    for curve in data.comparison.curves:
        for point in curve.points:
            merge = f"{WISE}@{point.alpha:g}"
            label = f"{curve.label} + {merge}"
            if 0 < point.alpha < 1 and label not in models:
                models[label] = {
                    "setting": label,
                    "series": _series(algorithms[curve.label], merge),
                    axes.id: percent(point.id),
                    axes.ood: percent(point.ood),
                    "on show": False,
                }
    front = pareto_front((model[axes.id], model[axes.ood]) for model in models.values())
    return [
        {**model, "front": (model[axes.id], model[axes.ood]) in front} for model in models.values()
    ]


def _intervals(id_test: Estimate, ood: Estimate, axes: _Axes) -> dict[str, Any]:
    ends: dict[str, Any] = {}
    for kind, name, summary in (("ID", axes.id, id_test), ("OOD", axes.ood, ood)):
        if summary.ci95 is not None:
            low, high = 100 * summary.ci95.low, 100 * summary.ci95.high
            ends |= interval_ends(summary.ci95, name)
            ends[f"interval of {kind}"] = f"{low:.1f} to {high:.1f}"
    return ends


def _series(algorithm: str, merge: str | None) -> str:
    return algorithm if merge is None else f"{algorithm} + {split_merge(merge)[0]}"


def _legend(data: ChartData, models: _Rows) -> Legend:
    drawn = dict.fromkeys(model["series"] for model in models)
    every = {
        _series(row.arm.algorithm, merge): (row.arm.algorithm, merge is not None)
        for row in data.comparison.rows
        for merge in (row.arm.merge, WISE)
    }
    ordered = sorted(drawn, key=lambda text: (data.algorithms.index(every[text][0]), every[text]))
    return palette.legend_of_series({text: every[text] for text in ordered}, data.algorithms)


def _draw_models(rows: _Rows, legend: Legend, axes: _Axes) -> list[alt.Chart]:
    place = alt.Chart().encode(axes.x, axes.y)
    hints = tooltips(
        "setting", (axes.id, ".1f"), (axes.ood, ".1f"), ("runs", "d"), "interval of ID"
    )
    points = place.encode(*legend.symbols(), tooltip=[*hints, *tooltips("interval of OOD")])
    others = points.transform_filter("!datum['on show']")
    rings = place.transform_filter("datum.front")
    return [
        *interval_rules(place.encode(legend.colour()), "x", axes.id, rows),
        *interval_rules(place.encode(legend.colour()), "y", axes.ood, rows),
        others.mark_point(filled=False, size=24, opacity=0.55, aria=False),
        points.transform_filter("datum['on show']").mark_point(filled=False, size=90, opacity=1),
        rings.mark_point(filled=False, size=260, color=NEUTRAL, strokeWidth=1.5, aria=False),
    ]


def _reference_curve(data: ChartData) -> Curve | None:
    if data.reference is None:
        return None
    setting = data.reference.setting
    return next((curve for curve in data.comparison.curves if curve.label == setting), None)


def _draw_curves(data: ChartData, legend: Legend, axes: _Axes) -> list[alt.Chart]:
    """Draw dashed lines, and the alphas of the reference's."""
    algorithms = {row.arm.label: row.arm.algorithm for row in data.comparison.rows}
    rows: _Rows = [
        {
            "curve": curve.label,
            "series": _series(algorithms[curve.label], WISE),
            "alpha": point.alpha,
            axes.id: percent(point.id),
            axes.ood: percent(point.ood),
        }
        for curve in data.comparison.curves
        for point in curve.points
    ]
    rows = [row for row in rows if row["series"] in legend.styles]
    if not rows:
        return []
    base = alt.Chart(inline_data(rows)).encode(axes.x, axes.y)
    lines = base.mark_line(strokeWidth=1.5, opacity=0.8, strokeDash=[5, 3], aria=False).encode(
        legend.colour(), alt.Detail("curve:N"), alt.Order("alpha:Q")
    )
    curve = _reference_curve(data)
    if curve is None:
        return [lines]
    inner = f"datum.curve === {json.dumps(curve.label)} && datum.alpha > 0 && datum.alpha < 1"
    words = base.transform_filter(inner).encode(alt.Text("alpha:Q", format="~g"))
    return [lines, words.mark_text(align="left", dx=7, dy=-10, fontSize=10, aria=False)]


def _distance_rows(data: ChartData, axes: _Axes) -> _Rows:
    """List the rows on show that have a distance to the reference's curve, and where it ends."""
    rows: _Rows = []
    for row in data.shown:
        id_test, ood = row.metric(axes.id_metric).mean, row.metric(axes.ood_metric).mean
        distance = None if row.above_curve is None else row.above_curve.mean
        if id_test is None or ood is None or distance is None:
            continue
        rows.append(
            {
                "setting": row.arm.label,
                axes.id: percent(id_test),
                axes.ood: percent(ood),
                "curve": percent(ood - distance),
                "middle": percent(ood - distance / 2),
                "distance": percent(distance),
            }
        )
    return rows


def _draw_distances(rows: _Rows, axes: _Axes) -> list[alt.Chart]:
    if not rows:
        return []
    base = alt.Chart(inline_data(rows)).encode(axes.x)
    rules = base.mark_rule(color=NEUTRAL, strokeWidth=1.5).encode(
        axes.y, alt.Y2(field="curve"), tooltip=tooltips("setting", ("distance", "+.2f"))
    )
    # Rounded before it is written, a distance just below zero has no minus.
    rounded = base.transform_calculate(distance="round(10 * datum.distance) / 10 + 0")
    numbers = rounded.mark_text(align="right", dx=-12, fontSize=10, fontWeight="bold").encode(
        alt.Y(field="middle", type="quantitative", title=titled(axes.ood_metric)),
        alt.Text("distance:Q", format="+.1f"),
    )
    return [rules, numbers]


ID_OOD = Chart(
    name="id_ood",
    title="ID against OOD accuracy",
    about=(
        "Every setting, mean over seeds: further right is better in distribution, further up is "
        "better under shift. Large symbols stand for their algorithms, with 95 % intervals over "
        "seeds; hollow ones are merged, and the dashed lines are WiSE-FT curves, the reference's "
        "with its alphas. A ring marks the Pareto front, which no other model beats on both; an "
        "upright line with a number is the distance of the verdict, in points: the mean over seeds "
        "of that to the most that each seed's own WiSE-FT curve of the reference may give at equal "
        "ID accuracy."
    ),
    draw=draw_id_ood,
)
