"""A store that is slow or busy is told more at a time, and asked less often."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from tests.tracking.spool.troubled import NOW, PARENT, SWEEP, Troubled, loss
from tracking.errors import ServiceUnreachable
from tracking.spool import Spool
from tracking.store.base import Metric, RunKey, RunStart


class Slow(Troubled):
    """Each call takes a while, in which others report; remembers how many points it was told."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.batches: list[int] = []

    def metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        time.sleep(self.seconds)
        super().metrics(key, values)
        self.batches.append(len(values))


def test_a_slow_store_is_told_more_at_a_time_by_one_thread_and_nothing_is_lost(
    folder: Path,
) -> None:
    store = Slow(0.02)
    spool = Spool(store, folder, pace=0.01)
    runs = [RunKey("s", str(number)) for number in range(20)]
    spool.open(PARENT)
    for run in runs:
        spool.open(RunStart(run, run.digest, NOW, parent=SWEEP))
    assert spool.flush(10)
    threads = threading.active_count()
    for step in range(100):  # a report of each run every hundredth of a second
        for run in runs:
            spool.metrics(run, [loss(step), Metric("id/val/top1", step / 100, step, NOW + step)])
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert spool.flush(20)
    spool.close()
    for run in runs:
        assert [point.step for point in store.runs[run].history["train/loss"]] == list(range(100))
        assert len(store.runs[run].history["id/val/top1"]) == 100
    assert sum(store.batches) == 20 * 100 * 2
    # A pass of twenty calls takes 0.4 s, its pause a third of that. A spool that told every report
    # would have made 2000 calls.
    assert len(store.batches) < 20 * 15
    assert max(store.batches) > 20


def test_a_busy_store_is_left_alone_as_long_as_it_asks(folder: Path, store: Troubled) -> None:
    tries: list[float] = []
    busy = ServiceUnreachable("busy")
    busy.retry_after = 0.6

    def asks() -> bool:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise busy
        return False

    store.away = asks
    spool = Spool(store, folder, pace=0.01, longest_pause=0.02)
    spool.take_up("another sweep")
    spool.open(PARENT)
    spool.open(RunStart(RunKey("another sweep"), "it", NOW))
    assert spool.flush(10)  # nor does it help to wait for it
    spool.close()
    assert len(tries) == 3  # the other sweep's was not tried at that time either
    assert tries[1] - tries[0] >= 0.6


def test_a_store_that_refuses_now_and_then_is_not_taken_for_one_that_is_away(
    folder: Path, store: Troubled
) -> None:
    spool = Spool(store, folder, pace=0.01, longest_pause=60)
    spool.open(PARENT)
    store.away = lambda: store.calls % 3 == 2 and next(moods)
    moods = cycle([True, False])
    for step in range(60):
        spool.metrics(SWEEP, [loss(step)])
        spool.tags(SWEEP, {"step": str(step)})
    time.sleep(0.05)
    deadline = time.monotonic() + 20
    while spool.behind() and time.monotonic() < deadline:  # nobody flushes
        time.sleep(0.02)
    assert spool.behind() == 0  # doubled each time, pauses would have come to minutes
    spool.close()
    assert len(store.runs[SWEEP].history["train/loss"]) == 60
