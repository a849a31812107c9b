"""ID against OOD accuracy: every setting, the WiSE-FT curves, the front, and the distances."""

from __future__ import annotations

from typing import Any

import altair as alt

from tracking.charts import marks, palette
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import single
from tracking.charts.measures import ends, percent, titled
from tracking.charts.palette import NEUTRAL, Signs
from tracking.curves import ID, OOD
from tracking.evidence import Evidence
from tracking.evidence.models import Model
from tracking.records import merge_name

_X, _Y = "ID test", "OOD mean"
_HEIGHT = 420


def draw(evidence: Evidence) -> Picture | None:
    """None where no model has both accuracies."""
    models = evidence.models
    if not models:
        return None
    signs = _signs(evidence)
    layers = [
        *_curves(evidence, signs),
        *_distances(evidence),
        *_points(signs),
        _front(),
    ]
    told = f"ID test against OOD mean accuracy of {len(models)} models"
    return single(layers, _HEIGHT, told, [_point(model) for model in models])


def _x() -> alt.X:
    return alt.X(**marks.number(_X, titled(ID)))


def _y() -> alt.Y:
    return alt.Y(**marks.number(_Y, titled(OOD)))


def _series(algorithm: str, merge: str | None) -> str:
    return algorithm if merge is None else f"{algorithm} + {merge_name(merge)}"


def _signs(evidence: Evidence) -> Signs:
    series = {
        _series(model.algorithm, model.merge): (model.algorithm, model.merge is not None)
        for model in sorted(evidence.models, key=lambda m: evidence.algorithms.index(m.algorithm))
    }
    return palette.of_series(series, evidence.algorithms)


def _points(signs: Signs) -> list[alt.Chart]:
    place = alt.Chart().encode(
        _x(),
        _y(),
        signs.colour(),
    )
    hints = marks.hints("setting", (_X, ".1f"), (_Y, ".1f"), ("runs", "d"), "interval of ID")
    hints += marks.hints("interval of OOD")
    shown = "datum['on show']"
    points = place.encode(signs.shape(), tooltip=hints)
    return [
        marks.interval(place, "x", _X),
        marks.interval(place, "y", _Y),
        points.transform_filter(f"!{shown}").mark_point(
            filled=True, size=34, opacity=0.55, aria=False
        ),
        points.transform_filter(shown).mark_point(filled=True, size=120, opacity=1),
    ]


def _point(model: Model) -> dict[str, Any]:
    x, y = (ends(model.id_ci95, _X), ends(model.ood_ci95, _Y)) if model.on_show else ({}, {})
    found: dict[str, Any] = {
        "setting": model.label,
        "series": _series(model.algorithm, model.merge),
        _X: percent(model.id),
        _Y: percent(model.ood),
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


def _front() -> alt.Chart:
    known = alt.Chart().transform_filter("datum.front")
    rings = known.mark_point(filled=False, size=260, color=NEUTRAL, strokeWidth=1.5, aria=False)
    front: alt.Chart = rings.encode(_x(), _y())
    return front


def _curves(evidence: Evidence, signs: Signs) -> list[alt.Chart]:
    reference = evidence.reference and evidence.reference.arm.label
    algorithms = {row.arm.label: row.arm.algorithm for row in evidence.comparison.rows}
    rows = [
        {
            "curve": curve.label,
            "series": _series(algorithms[curve.label], "wise_ft"),
            "alpha": point.alpha,
            "reference": curve.label == reference,
            _X: percent(point.id),
            _Y: percent(point.ood),
        }
        for curve in evidence.comparison.curves
        for point in curve.points
    ]
    rows = [row for row in rows if row["series"] in signs.entries]
    if not rows:
        return []
    base = alt.Chart(marks.data(rows)).encode(_x(), _y())
    lines = base.mark_line(strokeWidth=1.5, opacity=0.8, strokeDash=[5, 3], aria=False).encode(
        signs.colour(), alt.Detail("curve:N"), alt.Order("alpha:Q")
    )
    return [lines, _alphas(base, reference=True), _alphas(base, reference=False)]


def _alphas(base: alt.Chart, *, reference: bool) -> alt.Chart:
    """The numbers along the reference's curve above it, and below the others, which may be near."""
    side = 1 if reference else -1
    inner = "datum.alpha > 0 && datum.alpha < 1 && "
    words = base.transform_filter(f"{inner}{'' if reference else '!'}datum.reference").mark_text(
        align="left" if reference else "right", dx=7 * side, dy=-8 * side, fontSize=10, aria=False
    )
    numbers: alt.Chart = words.encode(alt.Text("alpha:Q", format="~g"))
    return numbers


def _distances(evidence: Evidence) -> list[alt.Chart]:
    rows = [
        {
            "setting": found.label,
            _X: percent(found.id),
            _Y: percent(found.ood),
            "curve": percent(found.curve),
            "middle": percent((found.ood + found.curve) / 2),
            "distance": percent(found.ood - found.curve),
        }
        for found in evidence.distances
    ]
    if not rows:
        return []
    x = _x()
    base = alt.Chart(marks.data(rows))
    hints = marks.hints("setting", ("distance", "+.2f"))
    rules = base.mark_rule(color=NEUTRAL, strokeWidth=1.5).encode(
        x, _y(), alt.Y2(field="curve"), tooltip=hints
    )
    numbers = base.mark_text(align="right", dx=-12, fontSize=10, fontWeight="bold").encode(
        x,
        alt.Y(field="middle", type="quantitative", title=titled(OOD)),
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
