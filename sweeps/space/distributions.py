"""What a sweep varies: one distribution per parameter."""

from __future__ import annotations

import bisect
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import Any, Literal

from carft_sweep.carft_core.errors import Route

Params = dict[str, Any]
"""One point: dotted trial config field -> value."""
Shape = Literal["normal", "log_normal", "beta", "log_uniform_values"]

SHAPES: Mapping[Shape, tuple[str, str]] = {
    "normal": ("mu", "sigma"),
    "log_normal": ("mu", "sigma"),
    "beta": ("a", "b"),
    "log_uniform_values": ("min", "max"),
}
"""The parametric distributions, and the two numbers of each."""
TAIL = 0.001
"""The share cut from each tail of a parametric distribution: so all its draws lie between known
ends, which are checked before the sweep begins."""


@dataclass(frozen=True)
class Condition:
    """A parameter, and the values of it with which another one varies."""

    name: str
    values: tuple[Any, ...]

    def is_met(self, point: Mapping[str, Any]) -> bool:
        """Whether a point has the parameter, at one of the values."""
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

    def grid_values(self) -> tuple[Any, ...] | None:
        """Return the values that a grid takes, in order; None when there is no end of them."""
        return None

    @abstractmethod
    def quantile(self, u: float) -> Any:
        """Return the value below which the share `u` (0 to 1) of the draws is."""

    @abstractmethod
    def boundary_values(self) -> list[tuple[Route, Any]]:
        """Return the values whose validity decides on all, each with its place in the file."""

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """Return the distribution without its conditions."""


@dataclass(frozen=True)
class Categorical(ConditionalBase):
    """One of some listed values; a single one is W&B's constant."""

    name: str
    values: tuple[Any, ...]
    probabilities: tuple[float, ...] | None = None
    """One for each value, together 1; None: all alike."""

    def grid_values(self) -> tuple[Any, ...]:
        return self.values

    def quantile(self, u: float) -> Any:
        if self.probabilities is None:
            return self.values[_index(len(self.values), u)]
        sums = list(itertools.accumulate(self.probabilities))
        possible = bisect.bisect_left(sums, sums[-1])
        return self.values[min(bisect.bisect_right(sums, u * sums[-1]), possible)]

    def boundary_values(self) -> list[tuple[Route, Any]]:
        return [(("values", index), value) for index, value in enumerate(self.values)]

    def _description(self) -> dict[str, Any]:
        if self.probabilities is None:
            return {"values": list(self.values)}
        return {"values": list(self.values), "probabilities": list(self.probabilities)}


class _Range(ConditionalBase):
    """Numbers between two ends."""

    low: float
    high: float

    def boundary_values(self) -> list[tuple[Route, Any]]:
        return [(("min",), self.low), (("max",), self.high)]


@dataclass(frozen=True)
class IntUniform(_Range):
    """The integers low, low + step, ..., up to and with high."""

    name: str
    low: int
    high: int
    step: int = 1

    @property
    def count(self) -> int:
        """How many integers there are."""
        return (self.high - self.low) // self.step + 1

    def grid_values(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1, self.step))

    def quantile(self, u: float) -> int:
        return self.low + self.step * _index(self.count, u)

    def _description(self) -> dict[str, Any]:
        ends = {"min": self.low, "max": self.high}
        if self.step == 1:
            return {"distribution": "int_uniform", **ends}
        return {"distribution": "q_uniform", **ends, "q": self.step}


@dataclass(frozen=True)
class SteppedUniform(_Range):
    """The numbers low, low + step, ..., up to and with high, computed in decimal."""

    name: str
    low: float
    high: float
    step: float

    @property
    def count(self) -> int:
        """How many numbers there are."""
        span = Decimal(repr(self.high)) - Decimal(repr(self.low))
        return int(span / Decimal(repr(self.step))) + 1

    def at(self, index: int) -> float:
        """Return the number of that index: 0.1 + 2 * 0.1 is 0.3, not 0.30000000000000004."""
        return float(Decimal(repr(self.low)) + index * Decimal(repr(self.step)))

    def grid_values(self) -> tuple[float, ...]:
        return tuple(self.at(index) for index in range(self.count))

    def quantile(self, u: float) -> float:
        return self.at(_index(self.count, u))

    def _description(self) -> dict[str, Any]:
        return {"distribution": "q_uniform", "min": self.low, "max": self.high, "q": self.step}


@dataclass(frozen=True)
class FloatUniform(_Range):
    """All numbers from low to high, uniform in the value or (`log`) in its logarithm."""

    name: str
    low: float
    high: float
    log: bool = False

    def quantile(self, u: float) -> float:
        return _between(self.low, self.high, u, log=self.log)

    def _description(self) -> dict[str, Any]:
        kind = "log_uniform_values" if self.log else "uniform"
        return {"distribution": kind, "min": self.low, "max": self.high}


@dataclass(frozen=True)
class Parametric(ConditionalBase):
    """Numbers of a shape that no sampler of Optuna's has; only random and qmc draw them.

    With `q` they are rounded to multiples of it, to integers where it is one.
    """

    name: str
    shape: Shape
    numbers: tuple[float, float]
    """In the order of SHAPES."""
    q: int | float | None = None
    down: bool = False
    """Rounded to the multiple below, and not to the nearest."""

    @property
    def kind(self) -> str:
        """The distribution's name in a sweep file."""
        return self.shape if self.q is None else f"q_{self.shape}"

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """The least and the greatest number that is drawn."""
        return self.quantile(0.0), self.quantile(1.0)

    def quantile(self, u: float) -> int | float:
        first, second = self.numbers
        share = TAIL + (1 - 2 * TAIL) * u
        if self.shape == "log_uniform_values":
            value = _between(first, second, u, log=True)
        elif self.shape == "beta":
            from scipy.special import betaincinv

            value = float(betaincinv(first, second, share))
        else:
            value = first + second * NormalDist().inv_cdf(share)
            value = math.exp(value) if self.shape == "log_normal" else value
        return rounded(value, self.q, down=self.down)

    def boundary_values(self) -> list[tuple[Route, Any]]:
        return [(("distribution",), end) for end in self.ends]

    def _description(self) -> dict[str, Any]:
        numbers = dict(zip(SHAPES[self.shape], self.numbers, strict=True))
        step = {} if self.q is None else {"q": self.q}
        down = {"rounding": "down"} if self.down else {}
        return {"distribution": self.kind, **numbers, **step, **down}


Distribution = Categorical | IntUniform | SteppedUniform | FloatUniform | Parametric


def rounded(value: float, q: int | float | None, *, down: bool = False) -> int | float:
    """Compute W&B's `round(X / q) * q`, in decimal; an integer where `q` is one.

    With `down` the multiple of `q` that is not above X.
    """
    if q is None:
        return value
    steps = math.floor(value / q) if down else round(value / q)
    return steps * q if isinstance(q, int) else float(steps * Decimal(repr(q)))


def _index(count: int, u: float) -> int:
    return min(int(u * count), count - 1)


def _between(low: float, high: float, u: float, *, log: bool) -> float:
    if log:
        start, end = math.log(low), math.log(high)
        value = math.exp(start + u * (end - start))
    else:
        value = low + u * (high - low)
    return min(max(value, low), high)


def canonical(value: Any) -> str:
    """Return a text that equal values share: 1 and 1.0 are one value, 1 and true are two."""
    is_whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_whole else value, sort_keys=True)


def is_among(value: Any, values: Iterable[Any]) -> bool:
    """Whether one of the values is this one."""
    return canonical(value) in map(canonical, values)
