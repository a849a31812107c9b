"""Timings of the product beside those of a floor, taken in turn, and how they are reported."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carft_sweep.sweeps.engines.resources import usable_cpus

GROSS = 2.0
"""A ratio that many times an earlier one is a regression whatever else the machine did."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int
    """How often each side has its turn."""
    quick: bool = False
    """Less work a turn, for a first look and for CI."""


@dataclass(frozen=True)
class Measurement:
    """One line of the report: the seconds of the product's work, and of its floor."""

    name: str
    floor_name: str
    floor: Sequence[float]
    """Seconds of the floor, by round."""
    ours: Sequence[float]
    """Seconds of the product, by round, taken right before or behind the floor's."""

    @property
    def ratios(self) -> list[float]:
        """Seconds of the product divided by those of the floor, by round."""
        return ratios(self.ours, self.floor)

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    def as_dict(self) -> dict[str, Any]:
        """Return the measurement as plain data, with its ratios."""
        return {**vars(self), "ratio": self.ratio, "ratios": self.ratios}


def take_turns(
    rounds: int, sides: Mapping[str, Callable[[], float | None]]
) -> dict[str, list[float]]:
    """Call each side in turn, and return the seconds of each call by name.

    A side that measures itself returns its seconds. The order turns from round to round, so that
    whatever else the machine does meets all alike; a round before the first warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = [*sides]
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            measured = sides[name]()
            if number:
                wall = time.perf_counter() - began
                seconds[name].append(wall if measured is None else measured)
    return seconds


def describe_machine() -> str:
    """Describe in a line: date, processor, cores, versions, and the load of the last minute."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    torch = importlib.metadata.version("torch")
    return (
        f"{now}; {_processor()}, {usable_cpus()} cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, torch {torch}"
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the quotients pair by pair; both of a pair were measured one after the other."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def median_and_range(values: Sequence[float], digits: int = 2) -> str:
    """Return `median (least to greatest)`, or the value alone when there is a single one."""
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def earlier_ratios(file: Path) -> dict[tuple[str, str], float]:
    """Read an earlier result: ratios by (suite, name)."""
    suites = json.loads(file.read_text(encoding="utf-8"))["suites"]
    return {(suite, row["name"]): row["ratio"] for suite, rows in suites.items() for row in rows}
