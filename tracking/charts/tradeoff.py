"""ID against OOD accuracy, with fronts and WiSE-FT curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import altair as alt

from tracking.charts import palette
from tracking.charts.base import (
    Chart,
    Picture,
    ends,
    inline_data,
    interval,
    percent,
    quantitative,
    single,
    titled,
    tooltips,
)
from tracking.charts.palette import NEUTRAL, Signs
from tracking.comparison.metrics import TOP1, named
from tracking.comparison.runs import merge_name
from tracking.evidence.data import Evidence
from tracking.evidence.models import Model

_WIDTHS, _LABEL_HEIGHT = (200, 500, 850), 350
"""Pixels that the points of a chart span: on a phone, in a figure and on a desk."""


@dataclass(frozen=True)
class Box:
    """What a symbol or a number covers."""

    x: float
    y: float
    """The point that it belongs to: 0 to 1 from the lowest to the highest of the chart."""
    dx: float
    dy: float
    """Pixels from there to its middle; to the right and up."""
    wide: float
    high: float
    """Half its sides in pixels."""

    def meets(self, other: Box) -> bool:
        """Whether the two overlap at some width."""
        apart = abs((self.y - other.y) * _LABEL_HEIGHT + self.dy - other.dy)
        return apart < self.high + other.high and any(
            abs((self.x - other.x) * width + self.dx - other.dx) < self.wide + other.wide
            for width in _WIDTHS
        )


@dataclass(frozen=True)
class Label:
    """A short number at a point, above it to the right or below it to the left."""

    DX, DY = 7, 10
    """Pixels from the point to the near end of the number, and to its middle."""

    text: str
    x: float
    y: float
    above: bool

    @property
    def box(self) -> Box:
        """Of its letters, ten pixels high."""
        sign, half = (1 if self.above else -1), 3 * len(self.text)
        return Box(self.x, self.y, sign * (self.DX + half), sign * self.DY, half, 6)

    @property
    def point(self) -> Box:
        """Of a small symbol."""
        return Box(self.x, self.y, 0, 0, 5, 5)


@dataclass(frozen=True)
class Frame:
    """The values that the points of a chart span."""

    left: float
    right: float
    low: float
    high: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of it, 0 to 1 both ways."""
        wide, high = self.right - self.left or 1.0, self.high - self.low or 1.0
        return (x - self.left) / wide, (y - self.low) / high


def sides(wanted: Sequence[Label], taken: Iterable[Box]) -> list[bool | None]:
    """Whether each stands above, if need be on the other side than it would; None: no room.

    Room is what neither `taken` nor earlier numbers cover. Of equal numbers at points that
    coincide the first stands for both.
    """
    found: list[bool | None] = []
    stand: list[Label] = []
    full = list(taken)
    for label in wanted:
        told = any(label.text == one.text and label.point.meets(one.point) for one in stand)
        both = () if told else (label, replace(label, above=not label.above))
        free = (side for side in both if not any(side.box.meets(box) for box in full))
        chosen = next(free, None)
        found.append(None if chosen is None else chosen.above)
        if chosen is not None:
            stand.append(chosen)
            full.append(chosen.box)
    return found


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


def draw_id_ood(evidence: Evidence) -> Picture | None:
    """None where no model has both accuracies."""
    models = evidence.models
    if not models:
        return None
    terms = evidence.comparison.endpoint
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
    return alt.X(**quantitative(axes.id, titled(axes.id_metric)))


def _y(axes: _Axes) -> alt.Y:
    return alt.Y(**quantitative(axes.ood, titled(axes.ood_metric)))


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
    hints = tooltips(
        "setting", (axes.id, ".1f"), (axes.ood, ".1f"), ("runs", "d"), "interval of ID"
    )
    hints += tooltips("interval of OOD")
    shown = "datum['on show']"
    points = place.encode(signs.shape(), tooltip=hints)
    return [
        *interval(place, "x", axes.id, rows),
        *interval(place, "y", axes.ood, rows),
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
    base = alt.Chart(inline_data(rows)).encode(_x(axes), _y(axes))
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
    base = alt.Chart(inline_data(rows))
    hints = tooltips("setting", ("distance", "+.2f"))
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


ID_OOD = Chart(
    name="id_ood",
    title="ID against OOD accuracy",
    about=(
        "Every setting, mean over seeds: further right is better in distribution, further up is "
        "better under shift. Large symbols stand for their algorithms, with 95 % intervals over "
        "seeds; hollow ones are merged, and the dashed lines are WiSE-FT curves with their alphas. "
        "A ring marks the Pareto front, which no other model beats on both; an upright line with a "
        "number is the distance in points to the reference's WiSE-FT curve at equal ID accuracy."
    ),
    draw=draw_id_ood,
)
