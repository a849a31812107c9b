"""The axis of a parameter: numbers with a log scale where they span decades, or categories."""

from __future__ import annotations

from typing import Any

import altair as alt

from tracking.charts.ticks import round_values
from tracking.evidence.parameters import Parameter

SHORT = (
    "abs(datum.value) > 0 && abs(datum.value) < 1e-3"
    " ? format(datum.value, '~e') : format(datum.value, '~g')"
)
"""Writes 0.00003 as 3e-5."""
_FEW = 7
"""Values that have a tick each."""
_WIDE = 30
"""Letters of all categories that stand level on a phone."""


def field(parameter: Parameter) -> str:
    """Its name in the data: a dot or a bracket there would mean something to Vega."""
    return parameter.title.replace(".", " ").replace("[", "(").replace("]", ")")


def channel(parameter: Parameter) -> dict[str, Any]:
    """A channel for the values of a parameter, as `Parameter.shown` gives them."""
    if parameter.numeric:
        kind = {"type": "quantitative", "scale": _scale(parameter), "axis": _axis(parameter)}
    else:
        order = _order(parameter)
        level = sum(map(len, map(str, order))) < _WIDE
        axis = alt.Axis(labelAngle=0 if level else -40, labelLimit=110)
        kind = {"type": "nominal", "sort": order, "axis": axis}
    return {"field": field(parameter), "title": parameter.title, **kind}


def cells(parameter: Parameter, *, upwards: bool = False) -> dict[str, Any]:
    """A channel with a place of the same size for each value; numbers rise to the right, or up."""
    order = _order(parameter)
    axis = alt.Axis(labelAngle=0, labelLimit=110)
    if parameter.numeric:
        axis["labelExpr"] = SHORT
    return {
        "field": field(parameter),
        "title": parameter.title,
        "type": "ordinal",
        "sort": order[::-1] if upwards else order,
        "axis": axis,
    }


def _order(parameter: Parameter) -> list[float | str]:
    return [parameter.shown(value) for value in parameter.values]


def _scale(parameter: Parameter) -> alt.Scale:
    if parameter.scale == "log":
        return alt.Scale(type="log", nice=False, padding=12)
    if parameter.scale == "symlog":
        return alt.Scale(type="symlog", constant=parameter.constant, nice=False, padding=12)
    return alt.Scale(zero=False, nice=False, padding=12)


def _axis(parameter: Parameter) -> alt.Axis:
    """Few values have a tick each: what was tried is what stands there."""
    values = parameter.numbers
    if len(values) > _FEW:
        values = round_values(parameter.scale, values[0], values[-1], parameter.constant)
    return alt.Axis(labelExpr=SHORT, labelOverlap=True, values=values)
