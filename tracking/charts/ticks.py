"""Where values lie along an axis of length one, and which of them are labelled there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tracking.evidence.parameters import Parameter, Scale, text
from tracking.records import Scalar

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
