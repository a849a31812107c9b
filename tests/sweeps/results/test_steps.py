"""The points within epochs on their way to a store: when, once, and beside the series by epoch."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from carft_sweep.carft_core.training.step_log import FILE
from carft_sweep.sweeps.results.sync import sync_sweep
from carft_sweep.sweeps.scheduler import session
from carft_sweep.sweeps.scheduler.session import Syncs
from carft_sweep.tracking.store.base import RunKey
from tests.sweeps.results.troubled import MadeSweep, Troubled, digest_of
from tests.tracking.memory_store import MemoryTracker

RUN = RunKey("made", digest_of(0))
LOSS, CPU = "train/loss_step", "system/cpu_utilization_percentage"


@pytest.fixture
def made(tmp_path: Path) -> MadeSweep:
    """A run in its second epoch."""
    made = MadeSweep(tmp_path)
    made.start(made.propose())
    made.epoch(0)
    return made


def steps(store: MemoryTracker, name: str = LOSS) -> list[int]:
    return [point.step for point in store.runs[RUN].history.get(name, [])]


def test_points_are_sent_within_an_epoch(made: MadeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one request, and only when ten seconds have passed since runs were looked at."""
    now = [0.0]
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: now[0]})
    monkeypatch.setattr("carft_sweep.sweeps.results.sync.time", clock)
    store = Troubled()
    sync = made.sync(store)
    assert sync.update()
    calls = store.calls
    for _ in range(3):
        made.point(0)
    now[0] = 9.0
    assert sync.update()
    assert (steps(store), store.calls) == ([], calls)
    now[0] = 10.0
    assert sync.update()
    assert (steps(store), steps(store, CPU), store.calls) == ([1, 2, 3], [1, 2, 3], calls + 1)
    made.point(0)
    now[0] = 20.0
    assert sync.update()
    now[0] = 30.0
    assert sync.update()
    assert (steps(store), store.calls) == ([1, 2, 3, 4], calls + 2), "what was sent is not again"


def test_a_drivers_thread_sends_them(made: MadeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("results.sync", "scheduler.session"):
        monkeypatch.setattr(f"carft_sweep.sweeps.{module}.EVERY", 0.01)
    monkeypatch.setattr(session, "PACE", 0.01)
    store = MemoryTracker()
    syncs = Syncs(made.home, made.ledger, store, made.runs.owner)
    try:
        assert syncs.flush()
        made.point(0)
        deadline = time.monotonic() + 60
        while not steps(store) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert steps(store) == [1]
    finally:
        syncs.close()


def test_a_run_without_points_and_one_with_a_damaged_file_are_sent(made: MadeSweep) -> None:
    made.finish(0)
    made.end()
    store = MemoryTracker()
    sync_sweep(made.home, "made", store)
    assert steps(store) == []
    (made.runs.folder(digest_of(0)) / FILE).write_bytes(b"\xff\n[]\n{}\n")
    again = MemoryTracker()
    assert not sync_sweep(made.home, "made", again).unreadable
    assert (again.runs[RUN].state, steps(again)) == ("finished", [])
