"""A store in trouble, a spool that delivers when it is asked, and what is told to both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tracking.errors import ServiceUnreachable, TrackingError
from tracking.spool import Spool
from tracking.store.base import EndState, Metric, RunKey, RunStart
from tracking.store.memory_store import MemoryTracker

NOW = 1_790_000_000_000
SWEEP = RunKey("s")
RUN = RunKey("s", "a" * 64)
PARENT = RunStart(SWEEP, "s", NOW)
CHILD = RunStart(RUN, "run", NOW, parent=SWEEP, params={"lr": math.inf, "n": 3})


class Troubled(MemoryTracker):
    """A store that is away when `away` says so, refuses some metrics, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.away: Callable[[], bool] = lambda: False
        self.answers_lost: Callable[[], bool] = lambda: False
        self.calls = 0

    def _around(self, call: Callable[[], None]) -> None:
        if self.away():
            raise ServiceUnreachable("away")
        self.calls += 1
        call()
        if self.answers_lost():
            raise ServiceUnreachable("answer lost")

    def open(self, start: RunStart) -> None:
        self._around(lambda: MemoryTracker.open(self, start))

    def metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        if any(metric.name == "poison" for metric in values):
            raise TrackingError("poisonous")
        if any(metric.name == "bug" for metric in values):
            raise KeyError("bug")
        self._around(lambda: MemoryTracker.metrics(self, key, values))

    def tags(self, key: RunKey, values: Mapping[str, str]) -> None:
        self._around(lambda: MemoryTracker.tags(self, key, values))

    def artifact(self, key: RunKey, path: Path, *, folder: str = "") -> None:
        self._around(lambda: MemoryTracker.artifact(self, key, path, folder=folder))

    def end(self, key: RunKey, state: EndState, *, timestamp: int) -> None:
        self._around(lambda: MemoryTracker.end(self, key, state, timestamp=timestamp))


class OneThread(Spool):
    """A spool that delivers when it is asked, so that a crash falls where the test wants it."""

    def _pump(self) -> None:
        return

    def deliver(self) -> None:
        for delivery in self._deliveries.values():
            try:
                delivery.deliver()
            except ServiceUnreachable:
                return


def loss(step: int, value: float | None = None) -> Metric:
    return Metric("train/loss", 1 / (step + 1) if value is None else value, step, NOW + step)
