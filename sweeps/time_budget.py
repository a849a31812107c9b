"""The time that a sweep may take, counted over all its drivers."""

from __future__ import annotations

import time

from sweeps.ledger import Ledger

_KEEP_AFTER = 10.0
"""Seconds between two records: so much is forgotten when a driver dies."""
_KEY = "seconds"


class TimeBudget:
    """Counts the seconds in which somebody drove the sweep; without a limit it only counts."""

    def __init__(self, ledger: Ledger, limit: float | None) -> None:
        self._ledger = ledger
        self._limit = limit
        self._before: float = ledger.recall(_KEY, 0.0)
        self._began = self._kept = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._began

    @property
    def is_used_up(self) -> bool:
        """Whether nothing may be started any more."""
        return self._limit is not None and self.spent >= self._limit

    def count(self, *, now: bool = False) -> None:
        """Keep what was spent, at most every ten seconds."""
        if now or time.monotonic() - self._kept >= _KEEP_AFTER:
            self._kept = time.monotonic()
            self._ledger.remember(_KEY, self.spent)
