"""The time budget of a sweep."""

from __future__ import annotations

import time

from carft_sweep.sweeps.ledger.ledger import SECONDS, Ledger

_KEEP_AFTER = 10.0
"""Seconds between two records of the time spent; at most so much is lost when a driver dies."""


class TimeBudget:
    """Counts the seconds in which a sweep was driven, against an optional limit."""

    def __init__(self, ledger: Ledger, limit: float | None) -> None:
        self._ledger = ledger
        self._limit = limit
        self._before: float = ledger.recall(SECONDS, 0.0)
        self._began = self._kept = time.monotonic()

    @property
    def spent(self) -> float:
        """The seconds that the sweep has used so far."""
        return self._before + time.monotonic() - self._began

    @property
    def is_used_up(self) -> bool:
        """Whether the time is used up, so that no more runs may start."""
        return self._limit is not None and self.spent >= self._limit

    def count(self, *, now: bool = False) -> None:
        """Record the spent time, at most every ten seconds or `now`."""
        if now or time.monotonic() - self._kept >= _KEEP_AFTER:
            self._kept = time.monotonic()
            self._ledger.remember(SECONDS, self.spent)
