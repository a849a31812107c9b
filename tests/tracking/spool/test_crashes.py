"""A crash at any point, of whatever is told, gives the same runs as none."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracking.spool.troubled import CHILD, NOW, PARENT, RUN, SWEEP, OneThread, Troubled
from tracking import journal as journals
from tracking.journal import sweeps_behind
from tracking.spool import Spool
from tracking.store.base import DatasetInput, Metric, RunKey, RunStart, Tracker
from tracking.store.memory_store import MemoryTracker

Step = Callable[[Tracker, Path], None]

_KEYS = st.sampled_from([SWEEP, RUN])
_NAMES = st.sampled_from(["a", "b/c", "wise(ft)"])
_METRIC = st.builds(
    Metric, _NAMES, st.floats(width=32), st.integers(0, 3), st.integers(NOW, NOW + 3)
)


def _artifact(key: RunKey, content: bytes, below: str) -> Step:
    def told(tracker: Tracker, work: Path) -> None:
        file = work / "file.bin"
        file.write_bytes(content)
        tracker.artifact(key, file, folder=below)
        file.unlink()

    return told


def _open(value: int, tag: str, name: str) -> Step:
    datasets = [DatasetInput("d", tag, "/d", "train")]
    start = RunStart(
        RUN, name, NOW, parent=SWEEP, params={"p": value}, tags={"t": tag}, datasets=datasets
    )
    return lambda tracker, _: tracker.open(start)


_VERBS: st.SearchStrategy[Step] = st.one_of(
    st.builds(_open, st.integers(0, 2), st.text("xy", max_size=2), st.sampled_from(["n", "m"])),
    st.builds(
        lambda key, values: lambda tracker, _: tracker.metrics(key, values),
        _KEYS,
        st.lists(_METRIC, max_size=4),
    ),
    st.builds(
        lambda key, values: lambda tracker, _: tracker.tags(key, values),
        _KEYS,
        st.dictionaries(_NAMES, st.text(max_size=3), max_size=2),
    ),
    st.builds(_artifact, _KEYS, st.binary(max_size=4), st.sampled_from(["", "plots"])),
    st.builds(
        lambda key, state, at: lambda tracker, _: tracker.end(key, state, timestamp=at),
        _KEYS,
        st.sampled_from(["finished", "failed", "killed"]),
        st.integers(NOW, NOW + 9),
    ),
)
_EVENTS = st.sampled_from(["deliver", "crash", "torn"])


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(_VERBS | _EVENTS, max_size=25),
    at_once=st.sampled_from([1, 300, 8 << 20]),
    away=st.lists(st.sampled_from(["away", "lost", "well", "well"]), max_size=12),
)
def test_a_crash_at_any_point_gives_the_same_runs_as_none(
    steps: list[Step | str], at_once: int, away: list[str]
) -> None:
    reference, store, moods = MemoryTracker(), Troubled(), list(away)
    store.away = lambda: bool(moods) and moods[0] == "away" and bool(moods.pop(0))
    store.answers_lost = lambda: bool(moods) and moods.pop(0) == "lost"
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "_READ", at_once)
        work, folder = Path(name), Path(name) / "spool"
        spool = OneThread(store, folder)
        for step in [lambda t, _: t.open(PARENT), lambda t, _: t.open(CHILD), *steps]:
            if callable(step):
                step(spool, work)
                step(reference, work)
                continue
            if step == "deliver":
                spool.deliver()
                continue
            spool.abandon()
            if step == "torn":
                with (folder / "s.jsonl").open("a") as file:
                    file.write('{"verb":"tags","key":["s","')
            spool = OneThread(store, folder)
            spool.take_up("s")
        moods.clear()
        spool.deliver()
        assert spool.behind() == spool.rejected() == 0
        spool.close()
        assert (folder / "s.jsonl").read_bytes() == b""
    assert store.runs == reference.runs


def test_a_killed_process_loses_nothing_that_was_told(folder: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from tracking.store.base import *
from tracking.store.memory_store import MemoryTracker
from tracking.spool import Spool
class Away(MemoryTracker):
    def open(self, start): raise ServiceUnreachable("away")
spool = Spool(Away(), Path({str(folder)!r}), pace=0.01)
key = RunKey("s")
spool.open(RunStart(key, "s", 1))
for step in range(200):
    spool.metrics(key, [Metric("m", step / 7, step, step)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert sweeps_behind(folder) == ["s"]
    store = Troubled()
    spool = Spool(store, folder, pace=0.01)
    spool.take_up("s")
    assert spool.flush(10)
    spool.close()
    assert [point.value for point in store.runs[SWEEP].history["m"]] == [i / 7 for i in range(200)]
    assert sweeps_behind(folder) == []
