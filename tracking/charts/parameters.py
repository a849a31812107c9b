"""Varied parameters of a sweep, and the axes on which their values lie."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from carft_sweep.tracking.comparison.compare import Row
from carft_sweep.tracking.comparison.runs import (
    Scalar,
    last_part,
    number_of,
    scalar_text,
    value_text,
)
from carft_sweep.tracking.comparison.statistics import mean

Scale = Literal["linear", "log", "symlog", "categories"]
_DECADE = 10
"""Two values whose ratio is at least this are drawn on a log scale."""
_FEW = 7
"""Most values that have a tick each."""
_WIDE = 30
"""Most letters of all categories together that fit in one line on a phone."""
_SHORT = (
    "!datum.label ? '' : abs(datum.value) > 0 && abs(datum.value) < 1e-3"
    " ? format(datum.value, '~e') : format(datum.value, '~g')"
)
"""Vega expression that writes 0.00003 as 3e-5, and nothing at ticks that Vega leaves bare."""


@dataclass(frozen=True)
class Parameter:
    """A field with at least two values among the settings."""

    name: str
    """The dotted name."""
    title: str
    """Its last part; the whole name where two end alike."""
    values: tuple[Scalar, ...]
    """Each once, numbers rising."""
    scale: Scale

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers, which a continuous axis can show."""
        return self.scale != "categories"

    @property
    def field(self) -> str:
        """The parameter's column in a chart's rows, named without Vega's special characters."""
        return self.title.replace(".", " ").replace("[", "(").replace("]", ")")

    @property
    def tooltip(self) -> tuple[str, str] | str:
        """The tooltip that shows the parameter's value, numbers in the usual format."""
        return (self.field, "~g") if self.numeric else self.field

    def shown(self, value: Scalar) -> float | str:
        """Return a value as its axis takes it: a number, or a text for a category."""
        if self.numeric and isinstance(value, (int, float)):
            return float(value)
        return scalar_text(value)

    def axis(self) -> dict[str, Any]:
        """Return the encoding of the values' axis: continuous for numbers, bands for categories."""
        shown = [self.shown(value) for value in self.values]
        if self.numeric:
            axis = alt.Axis(
                labelExpr=_SHORT, labelOverlap="greedy", labelSeparation=8, tickCount=_FEW
            )
            is_drawn = any(value_text(value) != scalar_text(value) for value in self.values)
            if len(shown) <= _FEW and not is_drawn:
                axis["values"] = shown
            elif self.scale == "log" and (ticks := _decades(_numbers(self.values))):
                axis["values"] = ticks
            channel = {"type": "quantitative", "scale": self._scale(), "axis": axis}
        else:
            in_one_line = sum(map(len, map(str, shown))) < _WIDE
            axis = alt.Axis(labelAngle=0 if in_one_line else -40, labelLimit=110)
            channel = {"type": "nominal", "sort": shown, "axis": axis}
        return {"field": self.field, "title": self.title, **channel}

    def _scale(self) -> alt.Scale:
        if self.scale == "symlog":
            smallest = min(value for value in _numbers(self.values) if value > 0)
            return alt.Scale(type="symlog", constant=smallest, nice=False, padding=12)
        if self.scale == "log":
            return alt.Scale(type="log", nice=False, padding=12)
        return alt.Scale(zero=False, nice=False, padding=12)


def varied_parameters(rows: Iterable[Row]) -> tuple[Parameter, ...]:
    """Return the parameters that take several values among trained rows, sorted by name."""
    values: dict[str, dict[str, Scalar]] = {}
    for row in rows:
        if row.arm.trains:
            for name, value in row.arm.params.items():
                values.setdefault(name, {}).setdefault(scalar_text(value), value)
    varied = {name: [*each.values()] for name, each in sorted(values.items()) if len(each) > 1}
    ends = Counter(map(last_part, varied))
    return tuple(
        Parameter(
            name,
            name if ends[last_part(name)] > 1 else last_part(name),
            tuple(sorted(each, key=_order)),
            scale_of(each),
        )
        for name, each in varied.items()
    )


def scale_of(values: Sequence[Scalar]) -> Scale:
    """Return the scale on which the values lie most evenly. Symlog is log with a zero among the
    values; values that are not all numbers are categories."""
    numbers = sorted(_numbers(values))
    if len(numbers) < len(values) or len(numbers) < 2:
        return "categories"
    positive = [number for number in numbers if number > 0]
    if len(positive) < 2 or numbers[0] < 0:
        return "linear"
    if len(positive) == 2:
        grow = round(positive[1] / positive[0], 6) >= _DECADE
    else:
        grow = _skew([math.log(number) for number in positive]) < _skew(positive)
    if not grow:
        return "linear"
    return "log" if len(positive) == len(numbers) else "symlog"


def _skew(numbers: Sequence[float]) -> float:
    """Return how far the mean of numbers is from the middle of their range, as a share of it."""
    return abs((mean(numbers) - numbers[0]) / (numbers[-1] - numbers[0]) - 0.5)


def _decades(numbers: Sequence[float]) -> list[float]:
    """Return powers of ten between the least and the largest of positive numbers, with 2 and 5
    times these if few; empty if still fewer than three."""
    low, high = min(numbers), max(numbers)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) > 2:
            return inside
    return []


def _order(value: Scalar) -> tuple[bool, float, str]:
    number = number_of(value)
    return number is None, number or 0.0, scalar_text(value)


def _numbers(values: Iterable[Scalar]) -> list[float]:
    numbers = map(number_of, values)
    return [number for number in numbers if number is not None and math.isfinite(number)]
