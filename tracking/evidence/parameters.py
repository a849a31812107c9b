"""The fields that a sweep varies, and on which kind of axis their values belong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tracking.comparison.compare import Row
from tracking.comparison.runs import Scalar
from tracking.comparison.statistics import mean

Scale = Literal["linear", "log", "symlog", "categories"]
_DECADE = 10.0
_EVEN = 0.02
"""Steps that differ by less than this share are even."""


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
        """Whether its values lie on an axis of numbers."""
        return self.scale != "categories"

    @property
    def numbers(self) -> list[float]:
        """Its values, rising; of categories none."""
        return _numbers(self.values) if self.numeric else []

    @property
    def constant(self) -> float:
        """Of a symlog axis: below the smallest positive value it is linear."""
        return min((value for value in self.numbers if value > 0), default=1.0)

    def shown(self, value: Scalar) -> float | str:
        """A value as it stands on the axis."""
        if self.numeric and isinstance(value, (int, float)):
            return float(value)
        return text(value)


def varied(rows: Iterable[Row]) -> tuple[Parameter, ...]:
    """The fields that take more than one value among rows that train, in order of their names."""
    found: dict[str, dict[str, Scalar]] = {}
    for row in rows:
        if row.arm.trains:
            for name, value in row.arm.params.items():
                found.setdefault(name, {}).setdefault(text(value), value)
    names = sorted(name for name, values in found.items() if len(values) > 1)
    ends = Counter(_end(name) for name in names)
    return tuple(
        _parameter(name, name if ends[_end(name)] > 1 else _end(name), found[name])
        for name in names
    )


def text(value: Scalar) -> str:
    """A value in words, as labels of settings show it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, (int, float)) else value


def scale_of(values: Sequence[Scalar]) -> Scale:
    """Log where positive numbers grow by a factor, or span a decade and lie more evenly there.

    With a zero among them symlog; what is not all numbers is categories.
    """
    numbers = sorted(_numbers(values))
    if len(numbers) < len(values) or len(numbers) < 2:
        return "categories"
    positive = [number for number in numbers if number > 0]
    if numbers[0] < 0 or not _grow_by_factors(positive):
        return "linear"
    return "log" if len(positive) == len(numbers) else "symlog"


def _parameter(name: str, title: str, found: Mapping[str, Scalar]) -> Parameter:
    scale = scale_of(list(found.values()))
    return Parameter(name, title, tuple(sorted(found.values(), key=_order)), scale)


def _order(value: Scalar) -> tuple[bool, float, str]:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (not is_number, float(value) if is_number and value is not None else 0.0, text(value))


def _numbers(values: Iterable[Scalar]) -> list[float]:
    return [
        float(value)
        for value in values
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ]


def _grow_by_factors(positive: Sequence[float]) -> bool:
    if len(positive) < 2:
        return False
    logs = [math.log(number) for number in positive]
    if len(positive) > 2 and (_are_even(logs) or _are_even(positive)):
        return _are_even(logs)
    wide = positive[-1] / positive[0] >= _DECADE * (1 - 1e-9)
    return wide and abs(_middle(logs) - 0.5) <= abs(_middle(positive) - 0.5) + 1e-9


def _are_even(numbers: Sequence[float]) -> bool:
    steps = [two - one for one, two in pairwise(numbers)]
    return max(steps) - min(steps) <= _EVEN * max(steps)


def _middle(numbers: Sequence[float]) -> float:
    """Where the mean lies between the ends, 0 to 1."""
    return (mean(numbers) - numbers[0]) / (numbers[-1] - numbers[0])


def _end(name: str) -> str:
    return name.rsplit(".", 1)[-1]
