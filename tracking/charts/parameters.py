"""The axes of varied parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import altair as alt

from tracking.comparison.runs import Scalar
from tracking.evidence.parameters import Parameter, Scale, text

_MOST = 7


@dataclass(frozen=True)
class Axis:
    """One upright axis of parallel coordinates."""

    title: str
    scale: Scale
    low: float
    high: float
    categories: tuple[str, ...] = ()
    constant: float = 1.0
    """Of a symlog axis."""
    labelled: tuple[float, ...] = ()
    """What has a tick each; empty: round numbers have."""

    def position(self, value: Scalar) -> float | None:
        """From 0, the bottom, to 1; None for what is not on this axis."""
        if self.scale == "categories":
            shown = text(value)
            if shown not in self.categories:
                return None
            return (self.categories.index(shown) + 0.5) / len(self.categories)
        if not isinstance(value, (int, float)):
            return None
        low, high, at = map(self.bent, (self.low, self.high, float(value)))
        return 0.5 if high == low else round((at - low) / (high - low), 4)

    def ticks(self) -> list[tuple[float, str]]:
        """Positions with labels."""
        values: Sequence[Scalar] = self.categories or self.labelled or self._round_values()
        found = [(self.position(value), text(value)) for value in values]
        return [(place, shown) for place, shown in found if place is not None]

    def bent(self, value: float) -> float:
        """A number such that equal steps of the axis are equal differences."""
        if self.scale == "log":
            return math.log(value)
        return math.log1p(value / self.constant) if self.scale == "symlog" else value

    def _round_values(self) -> list[float]:
        return round_values(self.scale, self.low, self.high, self.constant)


def round_values(scale: Scale, low: float, high: float, constant: float) -> list[float]:
    """At most seven round numbers from `low` to `high`, as fits the scale; both ends if there is
    none. `constant` is where a symlog axis begins to bend."""
    if low == high:
        return [low]
    if scale == "linear":
        return _evenly(low, high)
    if scale == "symlog":
        return [0.0, *_by_factors(constant, high, _MOST - 1)]
    return _by_factors(low, high, _MOST)


def of_parameter(parameter: Parameter) -> Axis:
    """From the smallest to the largest value that was tried."""
    if not parameter.numeric:
        names = tuple(text(value) for value in parameter.values)
        return Axis(parameter.title, "categories", 0.0, 1.0, names)
    numbers = tuple(parameter.numbers)
    return Axis(
        parameter.title,
        parameter.scale,
        *(numbers[0], numbers[-1]),
        constant=parameter.constant,
        labelled=numbers if len(numbers) <= _MOST else (),
    )


def of_numbers(title: str, values: Sequence[float]) -> Axis:
    """A linear axis around values."""
    return Axis(title, "linear", min(values), max(values))


def _evenly(low: float, high: float) -> list[float]:
    rough = (high - low) / (_MOST - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _by_factors(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, with numbers between them where they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for between in ((1, 2, 5), (1, 3), (1,)):
        every = [factor * 10.0**power for power in range(first, last + 1) for factor in between]
        found = [value for value in every if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most:
            break
    step = math.ceil(len(found) / most)
    return found[::step] if len(found) > 1 else [low, high]


SHORT = (
    "abs(datum.value) > 0 && abs(datum.value) < 1e-3"
    " ? format(datum.value, '~e') : format(datum.value, '~g')"
)
"""Writes 0.00003 as 3e-5."""
_FEW = 7
"""Values that have a tick each."""
_WIDE = 30
"""Letters of all categories that stand level on a phone."""


def axis_field(parameter: Parameter) -> str:
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
    return {"field": axis_field(parameter), "title": parameter.title, **kind}


def cells(parameter: Parameter, *, upwards: bool = False) -> dict[str, Any]:
    """A channel with a place of the same size for each value; numbers rise to the right, or up."""
    order = _order(parameter)
    axis = alt.Axis(labelAngle=0, labelLimit=110)
    if parameter.numeric:
        axis["labelExpr"] = SHORT
    return {
        "field": axis_field(parameter),
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


_PLACE = "place"
_STEP = 0.035
"""From one setting to the next, a share of the axis: a symbol's width on a phone."""
_FULL = 0.7
"""The share of the way to the next value that the settings of one value take at most."""
_FEW_POINTS = 12
"""Settings that fill the band of a category; fewer stand as close."""


def channels(parameter: Parameter, most: int) -> list[alt.X | alt.XOffset]:
    """Where `side_by_side` puts the settings, of which at most `most` share a value."""
    x = channel(parameter)
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
    by = [axis_field(parameter)]
    return [
        alt.WindowTransform(window=[{"op": "row_number", "as": "nth"}], groupby=by),
        alt.JoinAggregateTransform(joinaggregate=[{"op": "count", "as": "alike"}], groupby=by),
        alt.CalculateTransform(calculate=_moved(parameter, most), **{"as": _PLACE}),
    ]


def _moved(parameter: Parameter, most: int) -> str:
    """The place of a setting: on an axis of numbers, or in the band of its category."""
    nth = "(datum.nth - (datum.alike + 1) / 2)"
    if not parameter.numeric:
        return f"{nth} / {max(most, _FEW_POINTS)}"
    value = f"datum[{json.dumps(axis_field(parameter))}]"
    far = f"{_step(parameter, most):.4g} * {nth}"
    if parameter.scale == "log":
        return f"{value} * exp({far})"
    if parameter.scale == "symlog":
        constant = f"{parameter.constant:g}"
        return f"{constant} * ((1 + {value} / {constant}) * exp({far}) - 1)"
    return f"{value} + {far}"


def _step(parameter: Parameter, most: int) -> float:
    """In the unit of the axis, which for a log axis is a factor's logarithm."""
    bent = of_parameter(parameter).bent
    places = [bent(value) for value in parameter.numbers]
    nearest = min(two - one for one, two in pairwise(places))
    return min(_STEP * (places[-1] - places[0]), _FULL * nearest / most)
