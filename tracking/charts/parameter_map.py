"""Two parameters as a map of what the selection saw and of OOD accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import altair as alt

from tracking.charts import axes, marks, palette
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import layered, panels
from tracking.charts.measures import form, scaled, short, titled
from tracking.charts.palette import NEUTRAL
from tracking.evidence import Evidence
from tracking.evidence.parameters import Parameter
from tracking.rows import Row
from tracking.statistics import mean

_MOST_CELLS = 15
"""Rows or columns of a heat map."""
_MOST_WORDS = 6
"""Columns in which a number can be read on a phone."""
_FEW = 200
_HEIGHT = 260


@dataclass(frozen=True)
class _Shown:
    """One number of each setting, and how it is called."""

    field: str
    title: str
    metric: str
    value: Callable[[Row], float | None]


def draw(evidence: Evidence) -> Picture | None:
    """None where no algorithm varies two parameters."""
    chosen = _chosen(evidence)
    if chosen is None:
        return None
    rows, x, y = chosen
    cells = _cells(evidence, rows, x, y)
    panel = _heat if _is_grid(rows, x, y) else _scatter
    charts = [
        panel(cells, x, y, shown)
        for shown in _numbers(evidence)
        if any(shown.field in cell for cell in cells)
    ]
    if not charts:
        return None
    told = f"Map over {x.title} and {y.title} of {rows[0].arm.algorithm}, {len(rows)} settings"
    return panels(charts, told, margin=150, least=440, independent=["color"], rows=cells)


def _numbers(evidence: Evidence) -> list[_Shown]:
    """What the selection saw, and OOD accuracy of the unmerged model."""
    rule = evidence.comparison.rule
    of = "" if rule.merge is None else f", {rule.merge}"
    seen = _Shown(short(rule.metric) + of, titled(rule.metric) + of, rule.metric, evidence.value)
    metric = evidence.comparison.terms.ood
    ood = _Shown(short(metric), titled(metric), metric, lambda row: row.metric(metric).mean)
    return [seen] if seen.field == ood.field else [seen, ood]


def _chosen(evidence: Evidence) -> tuple[list[Row], Parameter, Parameter] | None:
    """The settings of one algorithm that vary in two parameters, the important ones first.

    The selected setting's algorithm goes before the others.
    """
    numeric = [parameter for parameter in evidence.parameters if parameter.numeric]
    rest = [parameter for parameter in evidence.parameters if not parameter.numeric]
    pool = evidence.parameters if evidence.importance else (*numeric, *rest)
    selected = evidence.selected
    first = () if selected is None else (selected.arm.algorithm,)
    for algorithm in dict.fromkeys((*first, *reversed(evidence.algorithms))):
        ours = [row for row in evidence.settings if row.arm.algorithm == algorithm]
        for one, two in combinations(pool, 2):
            rows = [row for row in ours if {one.name, two.name} <= set(row.arm.params)]
            if all(len({row.arm.params[p.name] for row in rows}) > 1 for p in (one, two)):
                x, y = (one, two) if one.numeric or not two.numeric else (two, one)
                return rows, x, y
    return None


def _is_grid(rows: Sequence[Row], x: Parameter, y: Parameter) -> bool:
    """Whether few values were tried, and most pairs of them."""
    if max(len(x.values), len(y.values)) > _MOST_CELLS:
        return False
    tried = {(x.shown(row.arm.params[x.name]), y.shown(row.arm.params[y.name])) for row in rows}
    return 2 * len(tried) >= len({a for a, _ in tried}) * len({b for _, b in tried})


def _cells(
    evidence: Evidence, rows: Sequence[Row], x: Parameter, y: Parameter
) -> list[dict[str, Any]]:
    """One for each place: means of the settings there, which differ in other parameters."""
    at: dict[tuple[float | str, float | str], list[Row]] = {}
    for row in rows:
        place = (x.shown(row.arm.params[x.name]), y.shown(row.arm.params[y.name]))
        at.setdefault(place, []).append(row)
    selected = evidence.selected and evidence.selected.arm.runs
    cells = []
    for (a, b), there in at.items():
        cell: dict[str, Any] = {axes.field(x): a, axes.field(y): b, "settings": len(there)}
        for shown in _numbers(evidence):
            values = [value for row in there if (value := shown.value(row)) is not None]
            if values:
                cell[shown.field] = scaled(shown.metric, mean(values))
        if any(row.arm.runs == selected for row in there):
            cell["selected"] = True
        cells.append(cell)
    return cells


def _colour(cells: Sequence[dict[str, Any]], shown: _Shown) -> alt.Color:
    values = [cell[shown.field] for cell in cells if shown.field in cell]
    scale = palette.ramp(min(values), max(values))
    legend = alt.Legend(title=None)
    return alt.Color(field=shown.field, type="quantitative", scale=scale, legend=legend)


def _hints(x: Parameter, y: Parameter, shown: _Shown) -> list[alt.Tooltip]:
    places = ((axes.field(p), "~g") if p.numeric else axes.field(p) for p in (x, y))
    return marks.hints(*places, (shown.field, form(shown.metric)), ("settings", "d"))


def _heat(
    cells: Sequence[dict[str, Any]], x: Parameter, y: Parameter, shown: _Shown
) -> alt.LayerChart:
    base = alt.Chart(title=shown.title).encode(
        alt.X(**axes.cells(x)), alt.Y(**axes.cells(y, upwards=True))
    )
    layers = [base.mark_rect().encode(_colour(cells, shown), tooltip=_hints(x, y, shown))]
    if len({cell[axes.field(x)] for cell in cells}) <= _MOST_WORDS:
        words = base.mark_text(color="white", fontWeight="bold", aria=False)
        number = alt.Text(field=shown.field, type="quantitative", format=form(shown.metric))
        layers.append(words.encode(number))
    chosen = base.transform_filter("datum.selected")
    # At the rim of its cell, half of the frame would lie on a page that may be white.
    size = alt.RelativeBandSize(band=0.95)
    layers.append(
        chosen.mark_rect(
            filled=False, stroke="white", strokeWidth=3, width=size, height=size, aria=False
        )
    )
    return layered(layers, _HEIGHT)


def _scatter(
    cells: Sequence[dict[str, Any]], x: Parameter, y: Parameter, shown: _Shown
) -> alt.LayerChart:
    base = alt.Chart(title=shown.title).encode(alt.X(**axes.channel(x)), alt.Y(**axes.channel(y)))
    few = len(cells) <= _FEW
    points = base.mark_point(filled=True, size=70 if few else 30, opacity=0.85, aria=few)
    chosen = base.transform_filter("datum.selected")
    layers = [
        points.encode(_colour(cells, shown), tooltip=_hints(x, y, shown)),
        chosen.mark_point(filled=False, size=260, strokeWidth=2.5, color=NEUTRAL, aria=False),
    ]
    return layered(layers, _HEIGHT)


CHART = Chart(
    name="map",
    title="Two parameters together",
    about=(
        "The two most important parameters, or the first two numeric ones where importance is not "
        "known: what the selection saw, and OOD accuracy. Orange is higher. A cell is the mean of "
        "the settings there; a frame or ring marks the selected one."
    ),
    draw=draw,
)
