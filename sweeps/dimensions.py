"""What a sweep varies: one dimension per parameter, as its sweep file describes it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from carft_core.algorithms import ALGORITHMS
from sweeps.yaml_lines import Route

Params = dict[str, Any]
"""One point: dotted trial config field -> value."""


@dataclass(frozen=True)
class Choice:
    """One of some listed values; a single one is W&B's constant."""

    name: str
    values: tuple[Any, ...]

    def plain(self) -> dict[str, Any]:
        """As a sweep file writes it."""
        return {"values": list(self.values)}


@dataclass(frozen=True)
class IntRange:
    """The integers low, low + step, ..., up to and with high."""

    name: str
    low: int
    high: int
    step: int = 1

    def plain(self) -> dict[str, Any]:
        """As a sweep file writes it."""
        ends = {"min": self.low, "max": self.high}
        if self.step == 1:
            return {"distribution": "int_uniform", **ends}
        return {"distribution": "q_uniform", **ends, "q": self.step}


@dataclass(frozen=True)
class StepRange:
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

    def plain(self) -> dict[str, Any]:
        """As a sweep file writes it."""
        ends = {"min": self.low, "max": self.high}
        return {"distribution": "q_uniform", **ends, "q": self.step}


@dataclass(frozen=True)
class FloatRange:
    """All numbers from low to high, uniform in the value or (`log`) in its logarithm."""

    name: str
    low: float
    high: float
    log: bool = False

    def plain(self) -> dict[str, Any]:
        """As a sweep file writes it."""
        kind = "log_uniform_values" if self.log else "uniform"
        return {"distribution": kind, "min": self.low, "max": self.high}


Dimension = Choice | IntRange | StepRange | FloatRange


def listed(dimension: Dimension) -> tuple[Any, ...] | None:
    """The values a grid takes, in order; None when there is no end of them."""
    match dimension:
        case Choice():
            return dimension.values
        case IntRange():
            return tuple(range(dimension.low, dimension.high + 1, dimension.step))
        case StepRange():
            return tuple(dimension.at(index) for index in range(dimension.count))
        case FloatRange():
            return None


def probes(dimension: Dimension) -> list[tuple[Route, Any]]:
    """The values whose validity decides on the whole dimension, each with its place in it."""
    if isinstance(dimension, Choice):
        return [(("values", index), value) for index, value in enumerate(dimension.values)]
    return [(("min",), dimension.low), (("max",), dimension.high)]


def applies(name: str, algorithm: str) -> bool:
    """Whether a parameter is a field of that algorithm, or of no algorithm in particular.

    A method that trains nothing has no `optim` fields.
    """
    section, _, field = name.partition(".")
    if section == "algorithm" and field != "name":
        return field in ALGORITHMS[algorithm].model_fields
    return section != "optim" or ALGORITHMS[algorithm].trains


def grid(dimensions: Sequence[Dimension]) -> list[Params]:
    """Every combination, the first dimension slowest, each once.

    Where `algorithm.name` is varied, a point has only the fields that its algorithm has.
    Raises ValueError when a dimension has no end of values.
    """
    axes = [listed(dimension) for dimension in dimensions]
    if None in axes:
        raise ValueError("a grid wants dimensions with listed values")
    names = [dimension.name for dimension in dimensions]
    points = (
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(axis for axis in axes if axis is not None))
    )
    return distinct(projected(point, point.get("algorithm.name")) for point in points)


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
