"""ID against OOD accuracy: every setting, the WiSE-FT curves, the front, and the distances."""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt

from tracking.accuracy import TOP1, named
from tracking.charts import marks, palette
from tracking.charts.base import Chart, Picture
from tracking.charts.labels import Box, Frame, Label, sides
from tracking.charts.layout import single
from tracking.charts.measures import ends, percent, titled
from tracking.charts.palette import NEUTRAL, Signs
from tracking.evidence import Evidence
from tracking.evidence.models import Model
from tracking.records import merge_name

_HEIGHT = 420
_Rows = list[dict[str, Any]]


class _Axes(NamedTuple):
    """The metrics to the right and upwards; in rows they stand under their names."""

    id_metric: str
    ood_metric: str

    @property
    def id(self) -> str:
        return named(self.id_metric)

    @property
    def ood(self) -> str:
        return named(self.ood_metric)


def draw(evidence: Evidence) -> Picture | None:
    """None where no model has both accuracies."""
    models = evidence.models
    if not models:
        return None
    terms = evidence.comparison.terms
    signs, axes = _signs(evidence), _Axes(terms.id_metric, terms.ood)
    points = [_point(model, axes) for model in models]
    curves, distances = _curve_rows(evidence, signs, axes), _distance_rows(evidence, axes)
    reference = None if evidence.reference is None else evidence.reference.arm.label
    _place_alphas(curves, reference, points, distances, axes)
    layers = [
        *_curves(curves, signs, axes),
        *_distances(distances, axes),
        *_points(points, signs, axes),
        _front(axes),
    ]
    named_already = "" if terms.by != TOP1 else " accuracy"
    told = f"{axes.id} against {axes.ood}{named_already} of {len(models)} models"
    return single(layers, _HEIGHT, told, points)


def _x(axes: _Axes) -> alt.X:
    return alt.X(**marks.number(axes.id, titled(axes.id_metric)))


def _y(axes: _Axes) -> alt.Y:
    return alt.Y(**marks.number(axes.ood, titled(axes.ood_metric)))


def _series(algorithm: str, merge: str | None) -> str:
    return algorithm if merge is None else f"{algorithm} + {merge_name(merge)}"


def _signs(evidence: Evidence) -> Signs:
    series = {
        _series(model.algorithm, model.merge): (model.algorithm, model.merge is not None)
        for model in sorted(evidence.models, key=lambda m: evidence.algorithms.index(m.algorithm))
    }
    return palette.of_series(series, evidence.algorithms)


def _points(rows: _Rows, signs: Signs, axes: _Axes) -> list[alt.Chart]:
    place = alt.Chart().encode(
        _x(axes),
        _y(axes),
        signs.colour(),
    )
    hints = marks.hints(
        "setting", (axes.id, ".1f"), (axes.ood, ".1f"), ("runs", "d"), "interval of ID"
    )
    hints += marks.hints("interval of OOD")
    shown = "datum['on show']"
    points = place.encode(signs.shape(), tooltip=hints)
    return [
        *marks.interval(place, "x", axes.id, rows),
        *marks.interval(place, "y", axes.ood, rows),
        points.transform_filter(f"!{shown}").mark_point(
            filled=True, size=34, opacity=0.55, aria=False
        ),
        points.transform_filter(shown).mark_point(filled=True, size=120, opacity=1),
    ]


def _point(model: Model, axes: _Axes) -> dict[str, Any]:
    x, y = (
        (ends(model.id_ci95, axes.id), ends(model.ood_ci95, axes.ood))
        if model.on_show
        else ({}, {})
    )
    found: dict[str, Any] = {
        "setting": model.label,
        "series": _series(model.algorithm, model.merge),
        axes.id: percent(model.id),
        axes.ood: percent(model.ood),
        "on show": model.on_show,
        "front": model.on_front,
        **x,
        **y,
    }
    if model.n is not None:
        found["runs"] = model.n
    for name, found_ends in (("ID", x), ("OOD", y)):
        if found_ends:
            low, high = found_ends.values()
            found[f"interval of {name}"] = f"{low:.1f} to {high:.1f}"
    return found


def _front(axes: _Axes) -> alt.Chart:
    known = alt.Chart().transform_filter("datum.front")
    rings = known.mark_point(filled=False, size=260, color=NEUTRAL, strokeWidth=1.5, aria=False)
    front: alt.Chart = rings.encode(_x(axes), _y(axes))
    return front


def _curve_rows(evidence: Evidence, signs: Signs, axes: _Axes) -> _Rows:
    algorithms = {row.arm.label: row.arm.algorithm for row in evidence.comparison.rows}
    rows: _Rows = [
        {
            "curve": curve.label,
            "series": _series(algorithms[curve.label], "wise_ft"),
            "alpha": point.alpha,
            axes.id: percent(point.id),
            axes.ood: percent(point.ood),
        }
        for curve in evidence.comparison.curves
        for point in curve.points
    ]
    return [row for row in rows if row["series"] in signs.entries]


def _place_alphas(
    curves: _Rows, reference: str | None, points: _Rows, distances: _Rows, axes: _Axes
) -> None:
    """Set `above` where an alpha has room for its number, on the reference's curve first.

    Its numbers stand above it, and those of the others, which may be near, below.
    """
    xs, ys = (
        [
            row[end]
            for row in (*points, *curves)
            for end in (f, f"{f} low", f"{f} high")
            if end in row
        ]
        for f in (axes.id, axes.ood)
    )
    frame = Frame(min(xs), max(xs), min(ys), max(ys))
    taken = [
        Box(*frame.at(row[axes.id], row[axes.ood]), 0, 0, 6, 6) for row in points if row["on show"]
    ]
    taken += [Box(*frame.at(row[axes.id], row["middle"]), -25, 0, 13, 6) for row in distances]
    inner = [row for row in curves if 0 < row["alpha"] < 1]
    inner.sort(key=lambda row: row["curve"] != reference)
    wanted = [
        Label(
            f"{row['alpha']:g}",
            *frame.at(row[axes.id], row[axes.ood]),
            above=row["curve"] == reference,
        )
        for row in inner
    ]
    for row, above in zip(inner, sides(wanted, taken), strict=True):
        if above is not None:
            row["above"] = above


def _curves(rows: _Rows, signs: Signs, axes: _Axes) -> list[alt.Chart]:
    if not rows:
        return []
    base = alt.Chart(marks.data(rows)).encode(_x(axes), _y(axes))
    lines = base.mark_line(strokeWidth=1.5, opacity=0.8, strokeDash=[5, 3], aria=False).encode(
        signs.colour(), alt.Detail("curve:N"), alt.Order("alpha:Q")
    )
    used = sorted({row["above"] for row in rows if "above" in row})
    return [lines, *(_alphas(base, above=above) for above in used)]


def _alphas(base: alt.Chart, *, above: bool) -> alt.Chart:
    side = 1 if above else -1
    words = base.transform_filter(f"datum.above === {'true' if above else 'false'}").mark_text(
        align="left" if above else "right",
        dx=Label.DX * side,
        dy=-Label.DY * side,
        fontSize=10,
        aria=False,
    )
    numbers: alt.Chart = words.encode(alt.Text("alpha:Q", format="~g"))
    return numbers


def _distance_rows(evidence: Evidence, axes: _Axes) -> _Rows:
    return [
        {
            "setting": found.label,
            axes.id: percent(found.id),
            axes.ood: percent(found.ood),
            "curve": percent(found.curve),
            "middle": percent((found.ood + found.curve) / 2),
            "distance": percent(found.ood - found.curve),
        }
        for found in evidence.distances
    ]


def _distances(rows: _Rows, axes: _Axes) -> list[alt.Chart]:
    if not rows:
        return []
    x = _x(axes)
    base = alt.Chart(marks.data(rows))
    hints = marks.hints("setting", ("distance", "+.2f"))
    rules = base.mark_rule(color=NEUTRAL, strokeWidth=1.5).encode(
        x, _y(axes), alt.Y2(field="curve"), tooltip=hints
    )
    # Rounded before it is written, a distance just below zero has no minus.
    rounded = base.transform_calculate(distance="round(10 * datum.distance) / 10 + 0")
    numbers = rounded.mark_text(align="right", dx=-12, fontSize=10, fontWeight="bold").encode(
        x,
        alt.Y(field="middle", type="quantitative", title=titled(axes.ood_metric)),
        alt.Text("distance:Q", format="+.1f"),
    )
    return [rules, numbers]


CHART = Chart(
    name="id_ood",
    title="ID against OOD accuracy",
    about=(
        "Every setting, mean over seeds: further right is better in distribution, further up is "
        "better under shift. Large symbols stand for their algorithms, with 95 % intervals over "
        "seeds; hollow ones are merged, and the dashed lines are WiSE-FT curves with their alphas. "
        "A ring marks the Pareto front, which no other model beats on both; an upright line with a "
        "number is the distance in points to fine-tuning's own curve at equal ID accuracy."
    ),
    draw=draw,
)
