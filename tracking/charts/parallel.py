"""Parallel coordinates: one line a trial, over its parameters and what came of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt

from tracking.charts import palette
from tracking.charts.base import Chart, Picture, inline_data, percent, single, tooltips
from tracking.charts.palette import NEUTRAL
from tracking.charts.parameters import Axis, of_numbers, of_parameter
from tracking.comparison.compare import Row
from tracking.comparison.metrics import named
from tracking.evidence.data import Evidence

FEWEST_TRIALS = 5
"""Fewer are drawn where at least two parameters vary."""
MOST_PARAMETERS = 8
_HEIGHT = 340
_PLACE, _AXIS, _TRIAL = "place", "axis", "number"
_BRUSHED = "length(data('brush_store'))"
_CAUGHT = f"!{_BRUSHED} || vlSelectionTest('brush_store', datum)"


def draw(evidence: Evidence) -> Picture | None:
    """None below two varied parameters and five trials."""
    parameters = evidence.parameters[:MOST_PARAMETERS]
    rows = [row for row in evidence.settings if row.arm.role == "trial" and row.arm.trains]
    if not parameters or len(rows) < 2:
        return None
    if len(parameters) < 2 and len(rows) < FEWEST_TRIALS:
        return None
    terms = evidence.comparison.endpoint
    wanted = (terms.val, terms.test, terms.ood)
    known = ((m, [row.metric(m).mean for row in rows]) for m in wanted)
    values = {m: found for m, found in known if any(value is not None for value in found)}
    if not values:
        return None
    every = [of_parameter(parameter) for parameter in parameters]
    for metric, found in values.items():
        shown = [percent(value) for value in found if value is not None]
        every.append(of_numbers(f"{named(metric)} (%)", shown))
    told = [
        [row.arm.params.get(parameter.name) for parameter in parameters]
        + [None if found[i] is None else percent(found[i] or 0.0) for found in values.values()]
        for i, row in enumerate(rows)
    ]
    return _chart(evidence, rows, every, told)


def _chart(
    evidence: Evidence, rows: Sequence[Row], every: Sequence[Axis], told: Sequence[list[Any]]
) -> Picture:
    selected = evidence.selected
    lines = [
        _line(row, every, found, selected is not None and row.arm.runs == selected.arm.runs)
        for row, found in zip(rows, told, strict=True)
    ]
    names = [str(number) for number in range(len(every))]
    titles = json.dumps([axis.title for axis in every])
    labels = f"{titles}[toNumber(datum.value)]"
    x = alt.X(
        field=_AXIS,
        type="nominal",
        sort=names,
        title=None,
        scale=alt.Scale(domain=names, type="point", padding=0.4),
        axis=alt.Axis(labelExpr=labels, labelAngle=-30, labelLimit=110, ticks=False, domain=False),
    )
    scale = alt.Scale(domain=[-0.02, 1.02], nice=False)
    y = alt.Y(field=_PLACE, type="quantitative", axis=None, scale=scale)
    description = f"{len(lines)} trials over {', '.join(axis.title for axis in every)}"
    return single(
        [_uprights(every, x), *_lines(lines, names, every[-1], x, y), *_ticks(every, x, y)],
        _HEIGHT,
        description,
        lines,
    )


def _line(row: Row, every: Sequence[Axis], told: list[Any], selected: bool) -> dict[str, Any]:
    """Its positions by the number of the axis, and its last value, which the colour shows."""
    places = {str(n): axis.position(v) for n, (axis, v) in enumerate(zip(every, told, strict=True))}
    return {
        _TRIAL: row.arm.trial,
        "setting": row.arm.label,
        **{name: place for name, place in places.items() if place is not None},
        every[-1].title: told[-1],
        **({"selected": True} if selected else {}),
    }


def _uprights(every: Sequence[Axis], x: alt.X) -> alt.Chart:
    ends = [{_AXIS: str(number), "from": 0, "to": 1} for number in range(len(every))]
    rules = alt.Chart(inline_data(ends)).mark_rule(color=NEUTRAL, aria=False)
    start = alt.Y(field="from", type="quantitative", axis=None)
    drawn: alt.Chart = rules.encode(x, start, alt.Y2("to"))
    return drawn


def _ticks(every: Sequence[Axis], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    found = [
        {_AXIS: str(number), _PLACE: place, "label": shown}
        for number, axis in enumerate(every)
        for place, shown in axis.ticks()
    ]
    base = alt.Chart(inline_data(found)).encode(x, y)
    dashes = base.mark_tick(color=NEUTRAL, size=6, thickness=1, orient="horizontal", aria=False)
    words = base.mark_text(align="right", dx=-5, fontSize=10, aria=False)
    return [dashes, words.encode(alt.Text("label:N"))]


def _lines(
    lines: Sequence[dict[str, Any]], names: list[str], outcome: Axis, x: alt.X, y: alt.Y
) -> list[alt.Chart]:
    """Those that a brush caught in colour before the others, the one under the pointer bold.

    A brush over an axis catches the trials that pass through it; without one all are caught.
    """
    scale = palette.ramp(outcome.low, outcome.high)
    legend = alt.Legend(orient="bottom", type="gradient", gradientLength=180, title=outcome.title)
    colour = alt.Color(field=outcome.title, type="quantitative", scale=scale, legend=legend)
    trial = alt.Detail(field=_TRIAL, type="nominal")
    brush = alt.selection_interval(name="brush", encodings=["x", "y"])
    hover = alt.selection_point(
        name="hover", fields=[_TRIAL], on="pointerover", clear="pointerout", empty=False
    )
    folded = (
        alt.Chart()
        .transform_fold([*names], as_=[_AXIS, _PLACE])
        .transform_filter(f"isValid(datum.{_PLACE})")
    )
    hints = tooltips("setting", (_TRIAL, "d"), (outcome.title, ".1f"))
    caught = (
        folded.transform_calculate(caught=f"({_CAUGHT}) ? 1 : 0")
        .transform_joinaggregate(some="max(caught)", groupby=[_TRIAL])
        .transform_filter("datum.some > 0")
    )
    # Of the stroke, not of the line: in a picture each line would be a layer of its own.
    opacity = max(0.12, min(0.9, 90 / len(lines)))
    place = [x, y, trial]
    return [
        folded.transform_filter(_BRUSHED)
        .mark_line(color=NEUTRAL, strokeWidth=1, strokeOpacity=opacity / 3, aria=False)
        .encode(*place)
        .properties(name="lines")
        .add_params(brush, hover),
        caught.mark_line(strokeWidth=1.4, strokeOpacity=opacity, aria=False).encode(
            *place, colour, tooltip=hints
        ),
        folded.transform_filter("datum.selected")
        .mark_line(strokeWidth=3.5, strokeDash=[8, 3])
        .encode(*place, colour, tooltip=hints),
        folded.transform_filter(hover)
        .mark_line(strokeWidth=4, aria=False)
        .encode(*place, colour, tooltip=hints),
    ]


PARALLEL = Chart(
    name="parallel",
    title="All trials",
    about=(
        "One line a trial, mean over seeds; each axis has its own unit, and orange lines end "
        "higher. Point at a line to follow it, or draw a box over an axis to keep only the trials "
        "that pass through it (a double click ends that). The dashed line is the selected trial."
    ),
    draw=draw,
)
