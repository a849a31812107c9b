"""What a check of `doctor` is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from carft_sweep.sweeps.home import Home

Level = Literal["ok", "warning", "wrong", "unreachable"]
FAULTS: Mapping[Level, int] = {"wrong": 2, "unreachable": 4}
"""The exit code for each; what is wrong goes before what is away."""


@dataclass(frozen=True)
class Scope:
    """What the command checks."""

    home: Home
    address: str | None = None
    """Of a Ray cluster, as the engine takes it; None where there is none."""
    nodes: bool = False
    """Whether each node of it is checked too."""


@dataclass(frozen=True)
class Finding:
    """One line of the result."""

    level: Level
    message: str
    advice: str = ""
    """What to do; left out, the check's own."""


ok = partial(Finding, "ok")
warning = partial(Finding, "warning")
"""Of what works, and may not for long."""
wrong = partial(Finding, "wrong")
"""Of what cannot work as it is requested."""
unreachable = partial(Finding, "unreachable")
"""Of a service that does not answer."""
Run = Callable[[Scope], Iterable[Finding]]


@dataclass(frozen=True)
class Check:
    """Checks one thing, within a time limit."""

    name: str
    """Its subject and what of it: `home.disk`."""
    purpose: str
    """What is checked."""
    advice: str
    """What to do in general when it is not well."""
    run: Run
    """Yields nothing where it does not apply. What it raises becomes a finding too."""
    seconds: float = 20.0
    """Its time limit."""
    is_gate: bool = False
    """Whether the rest of its subject is skipped where this one is not well."""

    @property
    def subject(self) -> str:
        """`home`."""
        return self.name.partition(".")[0]


def declare(
    checks: list[Check],
    name: str,
    purpose: str,
    advice: str,
    *,
    seconds: float = 20.0,
    is_gate: bool = False,
) -> Callable[[Run], Run]:
    """Make the decorated function a check, and append it to `checks`."""

    def decorated(run: Run) -> Run:
        checks.append(Check(name, purpose, advice, run, seconds, is_gate))
        return run

    return decorated
