"""What a check of `doctor` is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from sweeps.home import Home

Level = Literal["ok", "warning", "wrong", "unreachable"]


@dataclass(frozen=True)
class Asked:
    """What the command was asked to look at."""

    home: Home
    address: str | None = None
    """Of a Ray cluster, as the engine takes it; None where there is none."""
    nodes: bool = False
    """Whether each node of it is asked too."""


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    level: Level
    told: str
    todo: str = ""
    """What to do; left out, the check's own."""


@dataclass(frozen=True)
class Check:
    """Looks at one thing, within a time."""

    name: str
    """Its subject and what of it: `home.disk`."""
    means: str
    """What is looked at."""
    todo: str
    """What to do in general when it is not well."""
    look: Callable[[Asked], Iterable[Finding]]
    """Nothing is found where it does not apply. What it raises is a finding too."""
    seconds: float = 20.0
    """It is given up after so long."""
    first: bool = False
    """Whether the rest of its subject is not looked at where this one is not well."""

    @property
    def subject(self) -> str:
        """`home`."""
        return self.name.partition(".")[0]


def ok(told: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", told)


def warning(told: str, todo: str = "") -> Finding:
    """It works, and may not for long."""
    return Finding("warning", told, todo)


def wrong(told: str, todo: str = "") -> Finding:
    """It cannot work as it is asked for."""
    return Finding("wrong", told, todo)


def unreachable(told: str, todo: str = "") -> Finding:
    """A service does not answer."""
    return Finding("unreachable", told, todo)
