"""ID against OOD accuracy, with WiSE-FT curves."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import altair as alt
import numpy as np

from carft_sweep.tracking.charts import palette
from carft_sweep.tracking.charts.base import (
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
    with_halo,
)
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.palette import Legend
from carft_sweep.tracking.comparison.metrics import TOP1, named
from carft_sweep.tracking.comparison.runs import split_merge
from carft_sweep.tracking.comparison.wise_ft_curve import WISE, Curve, highest_on_chords

_HEIGHT = 420
_SMALL, _LARGE = 40, 100
"""Square pixels of a point: of other settings, and of those that represent an algorithm."""
_LETTER = 8
"""Largest width of a letter in pixels."""
_LINE = 16
"""Height of a line of words in pixels."""
_ROOM = 0.25
"""How far from the points of all algorithms others are drawn, in parts of what those span."""
_ROOMY = 420
"""Width of a plot, in pixels, from which on alphas are written."""
_OF_REFERENCE = "OOD mean of the reference"
_Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class _Axes:
    """The metrics of the chart's axes, ID to the right and OOD upwards, as columns of its rows."""

    id_metric: str
    ood_metric: str

    @property
    def id(self) -> str:
        return named(self.id_metric)

    @property
    def ood(self) -> str:
        return named(self.ood_metric)

    def channels(self) -> tuple[alt.X, alt.Y]:
        scale = alt.Scale(zero=False, nice=False, padding=25)
        x, y = (
            quantitative(field, titled(metric), scale=scale, axis=axis)
            for field, metric, axis in (
                (self.id, self.id_metric, alt.Axis(tickCount=alt.ExprRef("width / 80"))),
                (self.ood, self.ood_metric, None),
            )
        )
        return alt.X(**x), alt.Y(**y)

    def near(self) -> dict[str, float]:
        """Parts of the plot's width and height within which the names of two points would meet."""
        return {self.id: 0.35, self.ood: 0.05}

    def place(self, id_accuracy: float, ood: float) -> dict[str, float]:
        return {self.id: percent(id_accuracy), self.ood: percent(ood)}


def draw_id_ood(data: ChartData) -> Picture | None:
    """Draw every model as a point of ID and OOD accuracy; return None where no model has both."""
    endpoint = data.comparison.endpoint
    axes = _Axes(endpoint.id_metric, endpoint.ood)
    models = _model_rows(data, axes)
    if not models:
        return None
    legend = _legend(data, models)
    layers: list[alt.Chart | alt.LayerChart] = [
        *_draw_compared(data, axes),
        *_draw_curves(data, legend, axes),
        *_draw_models(models, legend, axes),
        *_draw_words(_word_rows(data, models, axes), axes),
    ]
    kind = "" if endpoint.by != TOP1 else " accuracy"
    description = f"{axes.id} against {axes.ood}{kind} of {len(models)} models"
    return single(layers, _HEIGHT, description, models)


def _model_rows(data: ChartData, axes: _Axes) -> _Rows:
    """Return the points of every setting, of the merged models that represent them, and the inner
    points of their WiSE-FT curves."""
    shown = {row.arm.label for row in data.shown}
    models: dict[str, dict[str, Any]] = {}
    for row in (*data.settings, *data.shown):
        label, id_test, ood = row.arm.label, row.metric(axes.id_metric), row.metric(axes.ood_metric)
        if id_test.mean is not None and ood.mean is not None:
            models[label] = {
                "setting": label,
                "method": _method(row.arm.algorithm, row.arm.merge),
                **axes.place(id_test.mean, ood.mean),
                "on show": label in shown,
            }
            if label in shown:
                models[label] |= interval_ends(id_test.ci95, axes.id)
                models[label] |= interval_ends(ood.ci95, axes.ood)
    algorithms = {row.arm.label: row.arm.algorithm for row in data.comparison.rows}
    for curve in data.comparison.curves:
        for point in curve.points:
            merge = f"{WISE}@{point.alpha:g}"
            label = f"{curve.arm.label} + {merge}"
            if 0 < point.alpha < 1 and label not in models:
                models[label] = {
                    "setting": label,
                    "method": _method(algorithms[curve.arm.label], merge),
                    **axes.place(point.id, point.ood),
                    "on show": False,
                }
    return [*models.values()]


def _method(algorithm: str, merge: str | None) -> str:
    return algorithm if merge is None else f"{algorithm} + {split_merge(merge)[0]}"


def _legend(data: ChartData, models: _Rows) -> Legend:
    drawn = dict.fromkeys(model["method"] for model in models)
    every = {
        _method(row.arm.algorithm, merge): (row.arm.algorithm, merge is not None)
        for row in data.comparison.rows
        for merge in (row.arm.merge, WISE)
    }
    ordered = sorted(drawn, key=lambda text: (data.algorithms.index(every[text][0]), every[text]))
    legend = palette.legend_of_methods({text: every[text] for text in ordered}, data.algorithms)
    return replace(legend, orient="top")


def _draw_models(rows: _Rows, legend: Legend, axes: _Axes) -> list[alt.Chart]:
    place = alt.Chart().encode(*axes.channels())
    hints = tooltips("setting", (axes.id, ".1f"), (axes.ood, ".1f"))
    points = place.encode(*legend.symbols(), tooltip=hints)
    others = points.transform_filter(f"!datum['on show'] && {_near_shown(rows, axes)}")
    return [
        *interval_rules(place.encode(legend.colour()), "x", axes.id, rows),
        *interval_rules(place.encode(legend.colour()), "y", axes.ood, rows),
        others.mark_point(filled=False, size=_SMALL, opacity=0.9, aria=False),
        points.transform_filter("datum['on show']").mark_point(
            filled=False, size=_LARGE, opacity=1
        ),
    ]


def _near_shown(rows: _Rows, axes: _Axes) -> str:
    """Return the expression of a point that is not far from the points of all algorithms, which one
    poor setting of many would press together."""
    bounds = []
    for axis in (axes.id, axes.ood):
        shown = [row[axis] for row in rows if row["on show"]]
        room = _ROOM * (max(shown) - min(shown)) or 100  # of one algorithm every setting
        bounds.append(f"inrange(datum[{axis!r}], [{min(shown) - room}, {max(shown) + room}])")
    return " && ".join(bounds)


def _draw_compared(data: ChartData, axes: _Axes) -> list[alt.Chart]:
    """Return a layer that shades what is between the answer's two curves; [] without these."""
    verdict = data.comparison.answer.curve
    if verdict is None:
        return []
    candidate = verdict.pair.candidate
    curve, reference = _curve_of(data, candidate.label), _reference_curve(data)
    rows = [] if curve is None or reference is None else _between(curve, reference, axes)
    if len(rows) < 2:
        return []
    colour = alt.ColorValue(palette.colour_of(candidate.algorithm, data.algorithms))
    area = alt.Chart(inline_data(rows)).mark_area(opacity=0.15, aria=False)
    return [area.encode(*axes.channels(), alt.Y2(field=_OF_REFERENCE), colour)]


def _between(curve: Curve, reference: Curve, axes: _Axes) -> _Rows:
    """Return the OOD accuracies of both curves at each measured ID accuracy that both reach."""
    sides = [
        np.transpose([(point.id, point.ood) for point in line.points])
        for line in (curve, reference)
    ]
    reached = [ids for ids, _ in sides]
    low, high = max(map(np.min, reached)), min(map(np.max, reached))
    at = np.unique(np.concatenate(reached))
    at = at[(low <= at) & (at <= high)]
    heights = (highest_on_chords(ids, oods, at).tolist() for ids, oods in sides)
    return [
        {**axes.place(place, ood), _OF_REFERENCE: percent(other)}
        for place, ood, other in zip(at.tolist(), *heights, strict=True)
    ]


def _draw_curves(data: ChartData, legend: Legend, axes: _Axes) -> list[alt.Chart]:
    algorithms = {row.arm.label: row.arm.algorithm for row in data.comparison.rows}
    rows = [
        {
            "setting": curve.arm.label,
            "method": method,
            "alpha": point.alpha,
            **axes.place(point.id, point.ood),
        }
        for curve in data.comparison.curves
        if (method := _method(algorithms[curve.arm.label], WISE)) in legend.styles
        for point in curve.points
    ]
    if not rows:
        return []
    lines = alt.Chart(inline_data(rows)).mark_line(strokeWidth=2, strokeDash=[6, 3], aria=False)
    return [
        lines.encode(
            *axes.channels(), legend.colour(), alt.Detail("setting:N"), alt.Order("alpha:Q")
        )
    ]


def _word_rows(data: ChartData, models: _Rows, axes: _Axes) -> _Rows:
    """Return the words of the chart with their places: the names of the selected algorithm's
    setting, of the reference and of zero-shot, and the alphas of the reference's curve."""
    selected = data.comparison.selected
    algorithm = None if selected is None else selected.arm.algorithm
    standing = (data.reference, data.zero_shot)
    names = {
        row.arm.label
        for row in data.shown
        if row in standing or (row.arm.algorithm == algorithm and row.arm.merge is None)
    }
    labelled = [model for model in models if model["setting"] in names]
    near = {axis: part * np.ptp([m[axis] for m in models]) for axis, part in axes.near().items()}
    words: _Rows = []
    for model in sorted(labelled, key=lambda model: -model[axes.ood]):
        place = {axis: model[axis] for axis in near}
        over = sum(all(abs(word[a] - place[a]) <= near[a] for a in near) for word in words)
        below = _LINE * over - 3 if over else -13
        words.append({"words": model["setting"], "is_name": True, "below": below, **place})
    curve = _reference_curve(data)
    for point in () if curve is None else curve.points:
        if 0 < point.alpha < 1:
            place = axes.place(point.id, point.ood)
            words.append({"words": f"α {point.alpha:g}", "is_name": False, "below": -11, **place})
    return words


def _reference_curve(data: ChartData) -> Curve | None:
    return None if data.reference is None else _curve_of(data, data.reference.arm.setting_label)


def _curve_of(data: ChartData, setting: str) -> Curve | None:
    return next((curve for curve in data.comparison.curves if curve.arm.label == setting), None)


def _draw_words(rows: _Rows, axes: _Axes) -> list[alt.Chart]:
    """Return the charts of names above their points (below, where another stands above), on the
    right, and of alphas on the left; on the other side where the plot ends. A narrow plot shows no
    alphas."""
    place = f"scale('x', datum[{json.dumps(axes.id)}])"
    needed = f"{_LETTER} * (length(datum.words) + 1)"
    is_right = f"(datum.is_name ? {place} + {needed} < width : {place} < {needed})"
    # By a name of its own it is not among the numbers behind the chart.
    words = alt.Chart(alt.InlineData(values=rows, name="words"))
    return with_halo(
        words.encode(*axes.channels(), alt.Text("words:N")),
        baseline="middle",
        dx=alt.ExprRef(f"{is_right} ? 8 : -8"),
        dy=alt.ExprRef("datum.below"),
        align=alt.ExprRef(f"{is_right} ? 'left' : 'right'"),
        fontWeight=alt.ExprRef("datum.is_name ? 'bold' : 'normal'"),
        opacity=alt.ExprRef(f"datum.is_name || width >= {_ROOMY} ? 1 : 0"),
    )


ID_OOD = Chart(
    name="id_ood",
    title="ID against OOD accuracy",
    about=(
        "Every setting, mean over seeds: further right is better in distribution, further up is "
        "better under shift. Large symbols stand for their algorithms, with 95 % intervals over "
        "seeds; hollow ones are merged. Dashed lines are WiSE-FT curves, that of the reference "
        "with its alphas; shaded is what lies between it and the candidate's, over the ID accuracy "
        "that both reach. Settings far from all these are not drawn. Point at a symbol for its "
        "setting."
    ),
    draw=draw_id_ood,
)
