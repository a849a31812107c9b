"""Settings that share a value of a parameter stand side by side, so that each is seen."""

from __future__ import annotations

import json
from itertools import pairwise

import altair as alt

from tracking.charts import axes, ticks
from tracking.evidence.parameters import Parameter

_PLACE = "place"
_STEP = 0.035
"""From one setting to the next, a share of the axis: a symbol's width on a phone."""
_FULL = 0.7
"""The share of the way to the next value that the settings of one value take at most."""
_FEW = 12
"""Settings that fill the band of a category; fewer stand as close."""


def channels(parameter: Parameter, most: int) -> list[alt.X | alt.XOffset]:
    """Where `side_by_side` puts the settings, of which at most `most` share a value."""
    x = axes.channel(parameter)
    if most <= 1:
        return [alt.X(**x)]
    if parameter.numeric:
        return [alt.X(**{**x, "field": _PLACE})]
    offset = alt.XOffset(field=_PLACE, type="quantitative", scale=alt.Scale(domain=[-0.5, 0.5]))
    return [alt.X(**x), offset]


def side_by_side(parameter: Parameter, most: int) -> list[alt.Transform]:
    """What puts the settings that share a value evenly about it, in the order of the data.

    The data keep their values: the browser counts and moves, so that a page does not grow.
    """
    if most <= 1:
        return []
    by = [axes.field(parameter)]
    return [
        alt.WindowTransform(window=[{"op": "row_number", "as": "nth"}], groupby=by),
        alt.JoinAggregateTransform(joinaggregate=[{"op": "count", "as": "alike"}], groupby=by),
        alt.CalculateTransform(calculate=_moved(parameter, most), **{"as": _PLACE}),
    ]


def _moved(parameter: Parameter, most: int) -> str:
    """The place of a setting: on an axis of numbers, or in the band of its category."""
    nth = "(datum.nth - (datum.alike + 1) / 2)"
    if not parameter.numeric:
        return f"{nth} / {max(most, _FEW)}"
    value = f"datum[{json.dumps(axes.field(parameter))}]"
    far = f"{_step(parameter, most):.4g} * {nth}"
    if parameter.scale == "log":
        return f"{value} * exp({far})"
    if parameter.scale == "symlog":
        constant = f"{parameter.constant:g}"
        return f"{constant} * ((1 + {value} / {constant}) * exp({far}) - 1)"
    return f"{value} + {far}"


def _step(parameter: Parameter, most: int) -> float:
    """In the unit of the axis, which for a log axis is a factor's logarithm."""
    bent = ticks.of_parameter(parameter).bent
    places = [bent(value) for value in parameter.numbers]
    nearest = min(two - one for one, two in pairwise(places))
    return min(_STEP * (places[-1] - places[0]), _FULL * nearest / most)
