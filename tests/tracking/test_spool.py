"""Nothing told to the spool is lost, doubled or in the way, whatever happens to whom."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracking.subjects import all_runs, look_into_mlflow, points
from tracking import journal as journals
from tracking.base import (
    DatasetInput,
    EndState,
    Metric,
    RunKey,
    RunStart,
    ServiceUnreachable,
    Tracker,
    TrackingError,
)
from tracking.delivery import Delivery
from tracking.journal import Journal, SpoolBusy, known_run_ids, sweeps_behind
from tracking.memory import MemoryTracker
from tracking.mlflow_store import MlflowStore
from tracking.spool import Spool
from tracking.ui import serve

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


@pytest.fixture
def store() -> Troubled:
    return Troubled()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(store: Troubled, folder: Path) -> Iterator[Spool]:
    made = Spool(store, folder, pace=0.01, longest_pause=0.05)
    yield made
    made.close()


def loss(step: int, value: float | None = None) -> Metric:
    return Metric("train/loss", 1 / (step + 1) if value is None else value, step, NOW + step)


# -- a crash at any point changes nothing

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


class _OneThread(Spool):
    """A spool that delivers when it is asked, so that a crash falls where the test wants it."""

    def _pump(self) -> None:
        return

    def deliver(self) -> None:
        for delivery in self._deliveries.values():
            try:
                delivery.deliver()
            except ServiceUnreachable:
                return


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
        spool = _OneThread(store, folder)
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
            spool = _OneThread(store, folder)
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
from tracking.base import *
from tracking.memory import MemoryTracker
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


# -- while the store is away


def test_the_sweep_goes_on_while_the_store_is_away(spool: Spool, store: Troubled) -> None:
    away = True
    store.away = lambda: away
    start = time.monotonic()
    spool.open(PARENT)
    spool.open(CHILD)
    for step in range(100):
        spool.metrics(RUN, [loss(step)])
    assert time.monotonic() - start < 5
    assert not spool.flush(0.3)
    assert spool.behind() == 102
    assert spool.last_error == "away"
    assert store.runs == {}
    away = False
    assert spool.flush(10)
    assert not spool.last_error
    assert spool.behind() == 0
    assert len(store.runs[RUN].history["train/loss"]) == 100


def test_waiting_for_a_store_that_is_away_does_not_spin(folder: Path, store: Troubled) -> None:
    tries = 0

    def away() -> bool:
        nonlocal tries
        tries += 1
        return True

    store.away = away
    spool = Spool(store, folder, pace=0.01, longest_pause=60)
    spool.open(PARENT)
    time.sleep(0.5)
    assert 1 <= tries <= 7  # 0.02, 0.04, ... doubled each time
    assert not spool.flush(0.6)
    assert tries <= 12
    spool.close()


def test_closing_tries_once_and_keeps_the_rest(folder: Path, store: Troubled) -> None:
    store.away = lambda: True
    spool = Spool(store, folder, pace=30)
    spool.open(PARENT)
    start = time.monotonic()
    spool.close()
    spool.close()
    assert time.monotonic() - start < 5
    assert store.closed
    assert sweeps_behind(folder) == ["s"]
    with pytest.raises(TrackingError, match="closed"):
        spool.open(PARENT)


def test_closing_delivers_what_was_told_a_moment_ago(folder: Path, store: Troubled) -> None:
    spool = Spool(store, folder, pace=30)
    spool.open(PARENT)
    spool.close()
    assert SWEEP in store.runs


# -- while the store is slow or busy


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


# -- how it is delivered


def test_metrics_of_a_run_are_merged_and_keep_their_place(folder: Path, store: Troubled) -> None:
    spool = Spool(store, folder, pace=30)
    spool.open(PARENT)
    spool.open(CHILD)
    for step in range(500):
        spool.metrics(RUN, [loss(step)])
        spool.metrics(SWEEP, [loss(step)])
    spool.end(RUN, "finished", timestamp=NOW)
    assert spool.flush(10)
    spool.close()
    assert store.calls == 5  # two opened, two batches, one ended
    assert [point.step for point in store.runs[RUN].history["train/loss"]] == list(range(500))
    assert store.runs[RUN].state == "finished"


def test_opens_and_ends_are_on_the_disk_before_they_return(
    folder: Path, store: Troubled, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(store, folder, pace=30)
    spool.take_up("s")
    synced = 0
    real = os.fsync

    def fsync(file: int) -> None:
        nonlocal synced
        synced += 1
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    spool.open(PARENT)
    assert synced == 1
    spool.metrics(SWEEP, [loss(0)])
    assert synced == 1
    spool.end(SWEEP, "finished", timestamp=NOW)
    assert synced == 2
    spool.close()


def test_a_refused_record_is_set_aside_alone(spool: Spool, store: Troubled, folder: Path) -> None:
    spool.open(PARENT)
    spool.metrics(SWEEP, [loss(0)])
    spool.metrics(SWEEP, [Metric("poison", 1.0, 0, NOW)])
    spool.metrics(SWEEP, [Metric("bug", 1.0, 0, NOW)])
    spool.metrics(SWEEP, [loss(1)])
    spool.tags(RunKey("s", "never opened"), {"a": "b"})
    spool.tags(SWEEP, {"after": "it"})
    assert spool.flush(10)
    assert set(store.runs[SWEEP].history) == {"train/loss"}
    assert len(store.runs[SWEEP].history["train/loss"]) == 2
    assert store.runs[SWEEP].tags["after"] == "it"
    assert spool.rejected() == 3
    lines = (folder / "s.rejected.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert sorted(reasons) == [
        "KeyError: 'bug'",
        "poisonous",
        "run never opened of sweep 's' was never opened",
    ]
    assert any("poison" in json.loads(line)["record"] for line in lines)


def test_run_ids_are_known_without_the_store(folder: Path, spool: Spool) -> None:
    spool.open(PARENT)
    spool.open(CHILD)
    assert spool.flush(10)
    assert spool.run_id(RUN) == f"s/{RUN.digest}"
    spool.close()
    assert known_run_ids(folder, "s") == {"": "s/", RUN.digest: f"s/{RUN.digest}"}
    assert known_run_ids(folder, "other") == {}


# -- artifacts


def test_a_small_file_is_kept_as_it_was_when_told(
    folder: Path, store: Troubled, tmp_path: Path
) -> None:
    away = True
    store.away = lambda: away
    spool = Spool(store, folder, pace=0.01, longest_pause=0.05)
    spool.open(PARENT)
    file = tmp_path / "config.json"
    for content, below in (("old", "first"), ("new", "")):
        file.write_text(content)
        spool.artifact(SWEEP, file, folder=below)
    file.unlink()
    away = False
    assert spool.flush(10)
    kept = {"first/config.json": b"old", "config.json": b"new"}
    assert store.runs[SWEEP].artifacts == kept
    spool.close()
    assert not (folder / "s.files").exists()


def test_a_large_file_is_read_when_it_is_delivered_and_a_missing_one_told_of(
    folder: Path, store: Troubled, tmp_path: Path
) -> None:
    away = True
    store.away = lambda: away
    spool = Spool(store, folder, pace=0.01, longest_pause=0.05)
    spool.open(PARENT)
    grows, goes = tmp_path / "log.txt", tmp_path / "weights.bin"
    for file in (grows, goes):
        file.write_bytes(b"x" * 1_000_000)
        spool.artifact(SWEEP, file)
    spool.artifact(SWEEP, tmp_path / "never")
    grows.write_bytes(b"y" * 1_000_001)
    goes.unlink()
    away = False
    assert spool.flush(10)
    run = store.runs[SWEEP]
    assert run.artifacts == {"log.txt": b"y" * 1_000_001}
    assert run.tags["carft.artifact_missing.weights.bin"] == str(goes)
    assert run.tags["carft.artifact_missing.never"] == str(tmp_path / "never")
    spool.close()


# -- the journal


def test_a_damaged_line_is_set_aside_and_the_others_arrive(folder: Path, store: Troubled) -> None:
    spool = _OneThread(store, folder)
    spool.open(PARENT)
    spool.tags(SWEEP, {"first": "1"})
    spool.abandon()
    with (folder / "s.jsonl").open("ab") as file:
        file.write(b'\x00\xff\n["no record"]\n{"verb":"fly"}\n{"verb":"tags"}\n{"verb":"to')
    again = Spool(store, folder, pace=0.01)
    again.take_up("s")
    again.tags(SWEEP, {"second": "2"})
    assert again.flush(10)
    assert again.rejected() == 4
    again.close()
    assert store.runs[SWEEP].tags == {"first": "1", "second": "2"}


@pytest.mark.parametrize("left", [None, "", "{", '{"acknowledged": 10000000, "runs": {}}'])
def test_a_position_that_is_lost_or_wrong_does_no_harm(
    folder: Path, store: Troubled, left: str | None
) -> None:
    spool = _OneThread(store, folder)
    spool.open(PARENT)
    spool.metrics(SWEEP, [loss(0)])
    spool.deliver()
    spool.abandon()
    before = store.runs[SWEEP].history["train/loss"].copy()
    position = folder / "s.position"
    position.unlink() if left is None else position.write_text(left)
    again = Spool(store, folder, pace=0.01)
    again.take_up("s")
    again.metrics(SWEEP, [loss(1)])
    assert again.flush(10)
    again.close()
    history = store.runs[SWEEP].history["train/loss"]
    assert history[: len(before)] == before
    assert len(history) == len(before) + 1


def test_a_crash_between_the_two_steps_of_compacting_does_no_harm(
    folder: Path, store: Troubled, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(store, folder, pace=0.01)
    spool.open(PARENT)
    assert spool.flush(10)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "acknowledge", lambda *_: None)
        spool.close()
    assert (folder / "s.jsonl").stat().st_size == 0
    again = Spool(store, folder, pace=0.01)
    again.tags(SWEEP, {"a": "b"})
    assert again.flush(10)
    again.close()
    assert store.runs[SWEEP].tags == {"a": "b"}


def test_a_line_longer_than_a_chunk_is_read_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_CHUNK", 16)
    monkeypatch.setattr(journals, "_READ", 16)
    journal = Journal(folder, "s")
    told = ["short", "long" * 50, "", "ü" * 9, "end"]
    for text in told:
        journal.append(text, durable=False)
    read = []
    assert journal.is_full
    while lines := journal.read():
        read += [line.text for line in lines]
    assert read == told
    assert not journal.is_full
    assert journal.count_waiting() == len(told)
    journal.close()
    with (folder / "s.jsonl").open("a") as file:
        file.write("torn" * 20)
    journal = Journal(folder, "s")
    assert journal.count_waiting() == len(told)
    journal.close()


def test_a_full_disk_leaves_the_journal_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, "s")
    journal.append("one", durable=False)
    real = os.write

    def write(file: int, data: bytes) -> int:
        if len(data) < 5:
            raise OSError(28, "No space left on device")
        return real(file, data[:3])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space"):
            journal.append("a longer one", durable=False)
    journal.append("two", durable=False)
    assert [line.text for line in journal.read()] == ["one", "two"]
    journal.close()


def test_any_name_of_a_sweep_has_its_own_file(folder: Path) -> None:
    for sweep in ("a/b", "a b", "a.rejected", "ü", "..", "%2F"):
        journal = Journal(folder, sweep)
        journal.append("{}", durable=False)
        journal.close()
    assert set(sweeps_behind(folder)) == {"a/b", "a b", "a.rejected", "ü", "..", "%2F"}
    assert all(file.parent == folder for file in folder.rglob("*"))


def test_a_second_process_is_refused_and_told_who_has_it(folder: Path, store: Troubled) -> None:
    code = (
        "import sys; from pathlib import Path; from tracking.journal import Journal\n"
        f"journal = Journal(Path({str(folder)!r}), 's'); print('ready', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        spool = Spool(store, folder, pace=0.01)
        with pytest.raises(SpoolBusy, match=f"process {other.pid}"):
            spool.take_up("s")
        spool.take_up("another sweep")
        other.stdin.close()
        other.wait(10)
        spool.take_up("s")
        spool.close()


def test_two_spools_of_one_process_do_not_share_a_journal(spool: Spool, folder: Path) -> None:
    spool.take_up("s")
    second = Spool(MemoryTracker(), folder)
    with pytest.raises(SpoolBusy, match=str(os.getpid())):
        second.take_up("s")
    second.close()


def test_delivery_stops_when_it_is_told(folder: Path, store: Troubled) -> None:
    delivery = Delivery(store, Journal(folder, "s"))
    for number in range(4):
        delivery.add({"verb": "tags", "key": ("s", str(number)), "values": {}}, durable=False)
    answers = iter([False, False, True, True])
    delivery.deliver(lambda: next(answers))
    assert delivery.behind == 3
    delivery.journal.close()


# -- the real thing


def test_a_server_killed_amid_spooling_has_everything_once_in_the_end(
    migrated: Path, tmp_path: Path
) -> None:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    uri, artifacts = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts"
    server = serve(uri, artifacts, port=5700)
    port = int(server.address.rsplit(":", 1)[1])
    experiment = f"test-{uuid.uuid4().hex}"
    spool = Spool(
        MlflowStore(server.address, experiment), tmp_path / "spool", pace=0.05, longest_pause=0.5
    )
    try:
        spool.open(PARENT)
        spool.open(CHILD)
        for step in range(60):
            spool.metrics(RUN, [loss(step)])
            if step == 20:
                assert spool.flush(30)
                spool.metrics(RUN, [loss(1000)])
                server.stop()
                spool.metrics(RUN, [loss(1001)])
                assert not spool.flush(1)
                assert spool.last_error is not None
        spool.tags(RUN, {"late": "told while it was away"})
        assert spool.behind() > 40
        server = serve(uri, artifacts, port=port)
        assert server.address.endswith(f":{port}")
        spool.end(RUN, "finished", timestamp=NOW + 60)
        spool.end(SWEEP, "finished", timestamp=NOW + 60)
        assert spool.flush(60)
        seen = look_into_mlflow(server.address, experiment)(RUN)
        assert seen is not None
        expected = [(step, NOW + step, 1 / (step + 1)) for step in [*range(60), 1000, 1001]]
        assert seen.history == {"train/loss": points(expected)}
        assert seen.tags == {"late": "told while it was away"}
        assert {run.info.status for run in all_runs(server.address, experiment)} == {"FINISHED"}
        assert len(all_runs(server.address, experiment)) == 2
    finally:
        spool.close()
        server.stop()
