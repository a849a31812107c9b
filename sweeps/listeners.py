"""Who is told as a sweep goes on, besides its ledger, its tracker and its display."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sweeps.webhook import Event


def _nobody(*_: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Listeners:
    """One function for each kind of news."""

    alive: Callable[[], None] = _nobody
    """The driver is alive."""
    told: Callable[[], None] = _nobody
    """A trial has its end."""
    alarm: Callable[[Event, str], None] = _nobody
    """`run_failed` or `breaker`, and what happened."""


NOBODY = Listeners()
