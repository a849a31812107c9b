"""What a sweep varies: one dimension per parameter, as its sweep file describes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from carft_core.algorithms import ALGORITHMS

Params = dict[str, Any]
"""One point: dotted trial config field -> value."""
Shape = Literal["normal", "log_normal", "beta", "log_uniform_values"]

SHAPES: Mapping[Shape, tuple[str, str]] = {
    "normal": ("mu", "sigma"),
    "log_normal": ("mu", "sigma"),
    "beta": ("a", "b"),
    "log_uniform_values": ("min", "max"),
}
"""The laws that only our own draws know, and the two numbers that each has."""


@dataclass(frozen=True)
class Condition:
    """A parameter, and the values of it with which another one varies."""

    name: str
    values: tuple[Any, ...]

    def is_met(self, point: Mapping[str, Any]) -> bool:
        """Whether a point has the parameter, at one of the values."""
        return self.name in point and is_among(point[self.name], self.values)


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """What all dimensions share: when they vary at all."""

    when: tuple[Condition, ...] = ()
    """All of them must be met; by none a parameter always varies."""

    def plain(self) -> dict[str, Any]:
        """As a sweep file writes it."""
        when = {condition.name: list(condition.values) for condition in self.when}
        return self.drawn() | ({"when": when} if when else {})

    def drawn(self) -> dict[str, Any]:
        """The same without the conditions."""
        raise NotImplementedError


@dataclass(frozen=True)
class Choice(Conditional):
    """One of some listed values; a single one is W&B's constant."""

    name: str
    values: tuple[Any, ...]
    probabilities: tuple[float, ...] | None = None
    """One for each value, together 1; None: all alike."""

    def drawn(self) -> dict[str, Any]:
        """See Conditional."""
        if self.probabilities is None:
            return {"values": list(self.values)}
        return {"values": list(self.values), "probabilities": list(self.probabilities)}


@dataclass(frozen=True)
class IntRange(Conditional):
    """The integers low, low + step, ..., up to and with high."""

    name: str
    low: int
    high: int
    step: int = 1

    @property
    def count(self) -> int:
        """How many integers there are."""
        return (self.high - self.low) // self.step + 1

    def drawn(self) -> dict[str, Any]:
        """See Conditional."""
        ends = {"min": self.low, "max": self.high}
        if self.step == 1:
            return {"distribution": "int_uniform", **ends}
        return {"distribution": "q_uniform", **ends, "q": self.step}


@dataclass(frozen=True)
class StepRange(Conditional):
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
        """The number of that index: 0.1 + 2 * 0.1 is 0.3, not 0.30000000000000004."""
        return float(Decimal(repr(self.low)) + index * Decimal(repr(self.step)))

    def drawn(self) -> dict[str, Any]:
        """See Conditional."""
        ends = {"min": self.low, "max": self.high}
        return {"distribution": "q_uniform", **ends, "q": self.step}


@dataclass(frozen=True)
class FloatRange(Conditional):
    """All numbers from low to high, uniform in the value or (`log`) in its logarithm."""

    name: str
    low: float
    high: float
    log: bool = False

    def drawn(self) -> dict[str, Any]:
        """See Conditional."""
        kind = "log_uniform_values" if self.log else "uniform"
        return {"distribution": kind, "min": self.low, "max": self.high}


@dataclass(frozen=True)
class Law(Conditional):
    """Numbers of a law that no sampler of Optuna's has: `sweeps.space.sampling` draws them.

    With `q` they are rounded to multiples of it, to integers where it is one.
    """

    name: str
    shape: Shape
    numbers: tuple[float, float]
    """In the order of SHAPES."""
    q: int | float | None = None

    @property
    def kind(self) -> str:
        """The distribution's name in a sweep file."""
        return self.shape if self.q is None else f"q_{self.shape}"

    def drawn(self) -> dict[str, Any]:
        """See Conditional."""
        numbers = dict(zip(SHAPES[self.shape], self.numbers, strict=True))
        step = {} if self.q is None else {"q": self.q}
        return {"distribution": self.kind, **numbers, **step}


Dimension = Choice | IntRange | StepRange | FloatRange | Law


def listed(dimension: Dimension) -> tuple[Any, ...] | None:
    """The values a grid takes, in order; None when there is no end of them."""
    match dimension:
        case Choice():
            return dimension.values
        case IntRange():
            return tuple(range(dimension.low, dimension.high + 1, dimension.step))
        case StepRange():
            return tuple(dimension.at(index) for index in range(dimension.count))
        case FloatRange() | Law():
            return None


def canonical(value: Any) -> str:
    """A text that equal values share: 1 and 1.0 are one value, 1 and true are two."""
    is_whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_whole else value, sort_keys=True)


def is_among(value: Any, values: Iterable[Any]) -> bool:
    """Whether one of the values is this one."""
    return canonical(value) in map(canonical, values)


def applies(name: str, algorithm: str) -> bool:
    """Whether a parameter is a field of that algorithm, or of no algorithm in particular.

    A method that trains nothing has no `optim` fields.
    """
    section, *fields = name.split(".")
    if section == "algorithm" and fields[0] != "name":
        return fields[0] in ALGORITHMS[algorithm].model_fields
    return section != "optim" or ALGORITHMS[algorithm].trains


def is_active(dimension: Dimension, point: Mapping[str, Any]) -> bool:
    """Whether a parameter varies where those that decide on it stand as in `point`.

    It does when its own conditions are met, and when the algorithm, where that varies, has it.
    """
    algorithm = point.get("algorithm.name")
    is_known = isinstance(algorithm, str) and algorithm in ALGORITHMS
    if is_known and not applies(dimension.name, str(algorithm)):
        return False
    return all(condition.is_met(point) for condition in dimension.when)


def ordered(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Each behind those that decide on it, otherwise as declared.

    Raises ValueError when conditions go round in a circle.
    """
    names = {dimension.name for dimension in dimensions}
    placed: dict[str, Dimension] = {}
    waiting = sorted(dimensions, key=lambda dimension: dimension.name != "algorithm.name")
    while waiting:
        ready = [
            dimension
            for dimension in waiting
            if all(item.name in placed or item.name not in names for item in dimension.when)
        ]
        if not ready:
            raise ValueError(f"conditions in a circle: {', '.join(d.name for d in waiting)}")
        placed |= {dimension.name: dimension for dimension in ready}
        waiting = [dimension for dimension in waiting if dimension.name not in placed]
    return list(placed.values())


def assigned(dimensions: Sequence[Dimension], choose: Callable[[Dimension], Any]) -> Params:
    """A point: what `choose` says for each active parameter, in declared order."""
    chosen: Params = {}
    for dimension in ordered(dimensions):
        if is_active(dimension, chosen):
            chosen[dimension.name] = choose(dimension)
    return {item.name: chosen[item.name] for item in dimensions if item.name in chosen}


def grid(dimensions: Sequence[Dimension]) -> list[Params]:
    """Every combination, the first dimension slowest, each once with its active parameters.

    Raises ValueError when a dimension has no end of values.
    """
    axes = _axes(dimensions)
    places = {name: {canonical(v): i for i, v in enumerate(axis)} for name, axis in axes.items()}

    def rank(point: Params) -> list[int]:
        return [
            place[canonical(point[name])] if name in point else 0 for name, place in places.items()
        ]

    points = sorted(_expanded(ordered(dimensions), axes, {}), key=rank)
    return [{name: point[name] for name in axes if name in point} for point in points]


def grid_size(dimensions: Sequence[Dimension], most: int) -> int:
    """How many points a grid has, without making them; counting ends once it is over `most`.

    Raises ValueError when a dimension has no end of values.
    """
    axes = _axes(dimensions)
    deciding = {condition.name for dimension in dimensions for condition in dimension.when}
    deciding.add("algorithm.name")
    others = [dimension for dimension in dimensions if dimension.name not in deciding]
    size = 0
    deciders = [dimension for dimension in ordered(dimensions) if dimension.name in deciding]
    for point in _expanded(deciders, axes, {}):
        size += math.prod(len(axes[item.name]) for item in others if is_active(item, point))
        if size > most:
            break
    return size


def _axes(dimensions: Sequence[Dimension]) -> dict[str, tuple[Any, ...]]:
    axes = {dimension.name: listed(dimension) for dimension in dimensions}
    if None in axes.values():
        raise ValueError("a grid wants dimensions with listed values")
    return {name: axis for name, axis in axes.items() if axis is not None}


def _expanded(
    dimensions: Sequence[Dimension], axes: Mapping[str, Sequence[Any]], point: Params
) -> Iterator[Params]:
    """Every way to go on from `point`; the dimensions stand in the order of decisions."""
    if not dimensions:
        yield point
        return
    first, rest = dimensions[0], dimensions[1:]
    if not is_active(first, point):
        yield from _expanded(rest, axes, point)
        return
    for value in axes[first.name]:
        yield from _expanded(rest, axes, {**point, first.name: value})


def projected(point: Mapping[str, Any], algorithm: str | None) -> Params:
    """The part of a point that an algorithm has; None: all of it."""
    return {
        name: value
        for name, value in point.items()
        if algorithm is None or applies(name, algorithm)
    }


def distinct(points: Iterable[Params]) -> list[Params]:
    """The points without repetitions, in order."""
    return list({json.dumps(point, sort_keys=True): point for point in points}.values())
