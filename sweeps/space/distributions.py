"""What a sweep varies: one distribution per parameter."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from carft_sweep.carft_core.errors import Route

Params = dict[str, Any]
"""One point: dotted trial config field -> value."""


@dataclass(frozen=True)
class Condition:
    """A condition on which a parameter varies: another parameter, `name`, has one of `values`."""

    name: str
    values: tuple[Any, ...]

    def is_met(self, point: Mapping[str, Any]) -> bool:
        """Return whether the parameter `name` is active at `point`, with one of `values`."""
        return self.name in point and is_among(point[self.name], self.values)


@dataclass(frozen=True, kw_only=True)
class ConditionalBase(ABC):
    """What all distributions share: the conditions under which a parameter varies."""

    when: tuple[Condition, ...] = ()
    """All of them must be met; without any the parameter always varies."""

    def to_dict(self) -> dict[str, Any]:
        """Return the distribution as a sweep file writes it."""
        when = {condition.name: list(condition.values) for condition in self.when}
        return self._description() | ({"when": when} if when else {})

    @abstractmethod
    def grid_values(self) -> Sequence[Any] | None:
        """Return the values that a grid takes, in order; None when infinitely many exist."""

    @abstractmethod
    def quantile(self, u: float) -> Any:
        """Return the value below which the share `u` (0 to 1) of the draws lies."""

    @abstractmethod
    def boundary_values(self) -> list[tuple[Route, Any]]:
        """Return pairs (route below the parameter, value): all values are valid if these are."""

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """Return the distribution as a sweep file writes it, without its conditions."""


@dataclass(frozen=True)
class Categorical(ConditionalBase):
    """One of some listed values; a single one is W&B's constant."""

    name: str
    values: tuple[Any, ...]

    def grid_values(self) -> tuple[Any, ...]:
        return self.values

    def quantile(self, u: float) -> Any:
        return self.values[_index(len(self.values), u)]

    def boundary_values(self) -> list[tuple[Route, Any]]:
        return [(("values", index), value) for index, value in enumerate(self.values)]

    def _description(self) -> dict[str, Any]:
        return {"values": list(self.values)}


@dataclass(frozen=True)
class Uniform(ConditionalBase):
    """Numbers from `low` to `high`, equally likely: all, or with `step` low, low + step, ..., high.
    They are integers where `low` and `step` are."""

    name: str
    low: int | float
    high: int | float
    step: int | float | None = None

    @property
    def count(self) -> int:
        """The number of values; 0 for infinitely many."""
        if self.step is None:
            return 0
        span = Decimal(repr(self.high)) - Decimal(repr(self.low))
        return int(span / Decimal(repr(self.step))) + 1

    def at(self, index: int) -> int | float:
        """Return low + index * step, computed in decimal: 0.1 + 2 * 0.1 is 0.3, not
        0.30000000000000004."""
        value = Decimal(repr(self.low)) + index * Decimal(repr(self.step))
        return int(value) if self.is_integer else float(value)

    @property
    def is_integer(self) -> bool:
        """Whether the numbers are integers."""
        return isinstance(self.low, int) and isinstance(self.step, int)

    def grid_values(self) -> Sequence[int | float] | None:
        match self.low, self.high, self.step:
            case int(low), int(high), int(step):
                return range(low, high + 1, step)
        return None if self.step is None else tuple(map(self.at, range(self.count)))

    def quantile(self, u: float) -> int | float:
        if self.step is not None:
            return self.at(_index(self.count, u))
        return min(max(self.low + u * (self.high - self.low), self.low), self.high)

    def nearest(self, value: float) -> int | float:
        """Return the value of the distribution that is nearest to a number in its range."""
        if self.step is None:
            return float(value)
        return self.at(round((value - self.low) / self.step))

    def boundary_values(self) -> list[tuple[Route, Any]]:
        return [(("min",), self.low), (("max",), self.high)]

    def _description(self) -> dict[str, Any]:
        ends = {"min": self.low, "max": self.high}
        if self.step is None:
            return {"distribution": "uniform", **ends}
        if self.is_integer and self.step == 1:
            return {"distribution": "int_uniform", **ends}
        return {"distribution": "q_uniform", **ends, "q": self.step}


@dataclass(frozen=True)
class LogUniform(ConditionalBase):
    """Numbers from `low` to `high` whose logarithms are uniformly distributed. With `step` they are
    rounded to multiples of `step`: integers where `step` is one."""

    name: str
    low: int | float
    high: int | float
    step: int | float | None = None
    down: bool = False
    """Whether values are rounded to the multiple of `step` below, not to the nearest."""

    def grid_values(self) -> None:
        return None

    def quantile(self, u: float) -> int | float:
        start, end = math.log(self.low), math.log(self.high)
        value = math.exp(start + u * (end - start))
        return self.nearest(min(max(value, self.low), self.high))

    def nearest(self, value: float) -> int | float:
        """Return `value` rounded to a multiple of `step`, with `down` to the one below; without
        `step` unchanged."""
        if self.step is None:
            return float(value)
        step = Decimal(repr(self.step))
        # Twelve digits: 1.4999999999999998, a float's last bit below 1.5, is 15 steps of 0.1.
        steps = int(Decimal(f"{value:.12g}") // step) if self.down else round(value / self.step)
        return steps * self.step if isinstance(self.step, int) else float(steps * step)

    def boundary_values(self) -> list[tuple[Route, Any]]:
        return [(("min",), self.nearest(self.low)), (("max",), self.nearest(self.high))]

    def _description(self) -> dict[str, Any]:
        ends = {"min": self.low, "max": self.high}
        if self.step is None:
            return {"distribution": "log_uniform_values", **ends}
        down = {"rounding": "down"} if self.down else {}
        return {"distribution": "q_log_uniform_values", **ends, "q": self.step, **down}


Distribution = Categorical | Uniform | LogUniform


def _index(count: int, u: float) -> int:
    return min(int(u * count), count - 1)


def canonical(value: Any) -> str:
    """Return a text that equal values share: 1 and 1.0 are the same value, 1 and true are not."""
    is_whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_whole else value, sort_keys=True)


def is_among(value: Any, values: Iterable[Any]) -> bool:
    """Return whether `value` equals one of `values`, as `canonical` compares them."""
    return canonical(value) in map(canonical, values)
