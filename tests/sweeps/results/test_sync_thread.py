"""A store is kept behind a sweep's files, whatever becomes of the store or of the driver."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.training.step_log import FILE
from carft_sweep.sweeps.ledger.status import OUTCOME
from carft_sweep.sweeps.results.sync import TRIES, SweepSync, sync_sweep
from carft_sweep.sweeps.results.sync_thread import SyncThread
from carft_sweep.sweeps.scheduler import session
from carft_sweep.sweeps.scheduler.session import Syncs
from carft_sweep.tracking.comparison.input_file import COMPARISON_INPUT, read_comparison_input
from carft_sweep.tracking.errors import RequestFailed, ServiceUnreachable, TrackingError
from carft_sweep.tracking.store.base import Metric, RunKey, RunStart
from tests.sweeps.results.troubled import MadeSweep, Troubled, digest_of
from tests.sweeps.scheduler.dying import Crash
from tests.tracking.memory_store import MemoryRun, MemoryTracker

LOSS, CPU = "train/loss_step", "system/cpu_utilization_percentage"
SWEEP, RUN, OTHER = RunKey("made"), RunKey("made", digest_of(0)), RunKey("made", digest_of(1))
NEXT: Mapping[str, Sequence[str]] = {
    "new": ["start"],
    "running": ["epoch", "point", "finish", "fail", "stop", "prune", "epoch", "point"],
    "stopped": ["start", "start", "prune"],
    "ended": [],
}
AFTER = {
    **dict.fromkeys(("start", "epoch", "point"), "running"),
    **dict.fromkeys(("finish", "fail", "prune"), "ended"),
    "stop": "stopped",
}


def nothing() -> None:
    return


@dataclass(frozen=True)
class Trouble:
    """What befalls an update after so many calls of the store."""

    calls: int
    is_crash: bool
    """The driver dies; else the store goes away."""
    is_lost: bool
    """The call was carried out, and its answer is lost."""

    def hooks(self) -> tuple[Callable[[], None], Callable[[], None]]:
        remaining = iter(range(self.calls))

        def fail() -> None:
            if next(remaining, None) is None:
                raise Crash if self.is_crash else ServiceUnreachable("away")

        return (nothing, fail) if self.is_lost else (fail, nothing)


@pytest.fixture
def made(tmp_path: Path) -> MadeSweep:
    return MadeSweep(tmp_path)


@pytest.fixture
def two(made: MadeSweep) -> MadeSweep:
    """Two runs, each with an epoch behind it."""
    for _ in range(2):
        number = made.propose()
        made.start(number)
        made.epoch(number)
    return made


def whole(run: MemoryRun) -> tuple[object, ...]:
    """What is kept of a run; a tag that was emptied is none."""
    tags = {name: value for name, value in run.tags.items() if value}
    history = {name: sorted(points) for name, points in run.history.items()}
    return run.state, run.started, run.ended, run.params, tags, history, run.artifacts, run.datasets


ACT = st.tuples(st.integers(0, 1), st.integers(0, 7))
"""A run, and which of the things that can happen to it next."""
UPDATE = st.builds(Trouble, st.integers(0, 8), st.booleans(), st.booleans())


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(ACT | UPDATE, min_size=5, max_size=30))
def test_a_crash_at_any_call_changes_no_run(steps: list[tuple[int, int] | Trouble]) -> None:
    """A driver dies at some of its calls, and another one goes on, or the store goes away there,
    before the call or with its answer. In the end the store holds what one that was sent
    everything at once does.
    """
    with tempfile.TemporaryDirectory() as name:
        made, store = MadeSweep(Path(name)), Troubled()
        states = {made.propose(): "new" for _ in range(2)}
        sync = made.sync(store)
        for step in steps:
            if isinstance(step, Trouble):
                store.before, store.after = step.hooks()
                for digest in map(digest_of, states):
                    sync.note(digest)
                try:
                    sync.update()
                except Crash:
                    sync = made.sync(store)
                except ServiceUnreachable:
                    pass  # the same one tries again later
                continue
            number, choice = step
            actions = NEXT[states[number]]
            if actions:
                action = actions[choice % len(actions)]
                getattr(made, action)(number)
                states[number] = AFTER[action]
        store.before = store.after = nothing
        for number, state in states.items():
            if state == "running":
                made.stop(number)
        made.end()
        sync.end_driver()
        assert sync.update()
        reference = MemoryTracker()
        sync_sweep(made.home, "made", reference)
        known = {key: run for key, run in store.runs.items() if key in reference.runs}
        assert {key: whole(run) for key, run in known.items()} == {
            key: whole(run) for key, run in reference.runs.items()
        }
        assert "running" not in {run.state for run in store.runs.values()}


@pytest.mark.parametrize("calls", [0, 4])
def test_a_store_that_is_away_is_sent_later_what_is_news_no_more(
    two: MadeSweep, calls: int
) -> None:
    store = Troubled()
    store.before, _ = Trouble(calls, is_crash=False, is_lost=False).hooks()
    sync = two.sync(store)
    with pytest.raises(ServiceUnreachable):
        sync.update()
    store.before = nothing
    assert sync.update()
    for run in (RUN, OTHER):
        assert [point.step for point in store.runs[run].history["train/loss"]] == [0]


def test_waiting_for_a_store_that_is_away_does_not_spin_and_no_error_ends_the_thread() -> None:
    tries = 0
    error: Exception | None = KeyError("a bug")

    def update() -> bool:
        nonlocal tries
        tries += 1
        if error is not None:
            raise error
        return True

    thread = SyncThread("test", update, pace=0.01)
    time.sleep(0.3)
    assert 1 <= tries <= 6  # 0.01, 0.02, 0.04, ... doubled each time
    error = ServiceUnreachable("away")
    assert not thread.flush(0.4)
    assert (thread.last_error, thread.is_done) == ("away", False)
    assert tries <= 12
    error = None
    assert thread.flush(10)
    assert thread.last_error is None
    thread.close(1)


def test_a_place_that_still_takes_what_is_sent_is_waited_for() -> None:
    taken = []

    def update() -> bool:
        for _ in range(10):
            time.sleep(0.1)
            taken.append(1)
        return True

    for progress, is_waited_for in ((lambda: 0, False), (lambda: len(taken), True)):
        thread = SyncThread("test", update, pace=0.01)
        assert thread.flush(0.4, progress=progress) == is_waited_for
        thread.close(5)


def test_a_slow_store_is_sent_more_at_a_time(made: MadeSweep) -> None:
    class Slow(Troubled):
        batches: Sequence[int] = ()

        def log_metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
            time.sleep(0.02)
            super().log_metrics(key, values)
            self.batches = [*self.batches, len(values)]

    store = Slow()
    numbers = [made.propose() for _ in range(10)]
    sync = made.sync(store)
    thread = SyncThread("test", sync.update, pace=0.01)
    for number in numbers:
        made.start(number)
    threads = threading.active_count()
    for _ in range(60):
        for number in numbers:
            made.epoch(number)
            sync.note(digest_of(number))
            thread.wake()
    assert threading.active_count() == threads
    assert thread.flush(20)
    thread.close(5)
    for number in numbers:
        points = store.runs[RunKey("made", digest_of(number))].history["train/loss"]
        assert [point.step for point in points] == list(range(60))
    assert sum(store.batches) == 10 * 60 * 2
    assert len(store.batches) < 10 * 30  # one that sent every report would have made 600 calls
    assert max(store.batches) > 20


@pytest.mark.parametrize("error", [KeyError("bug"), RequestFailed("pool exhausted")])
def test_a_failing_request_holds_up_no_other(two: MadeSweep, error: Exception) -> None:
    store = Troubled()
    store.poison = {"bug": error}
    two.epoch(0, {"bug": 1.0})
    sync = two.sync(store)
    for _ in range(TRIES - 1):
        assert not sync.update()
        assert OTHER in store.runs
    assert sync.update()
    assert [part for _, part in sync.refused] == ["epochs from 0"]
    two.finish(0)
    sync.note(RUN.digest)
    assert sync.update()
    assert store.runs[RUN].state == "finished"
    assert "config.json" in store.runs[RUN].artifacts


def test_a_start_that_is_refused_is_tried_by_the_next_driver(two: MadeSweep) -> None:
    class Picky(Troubled):
        refuses = True

        def start_run(self, start: RunStart) -> None:
            if self.refuses and start.key == RUN:
                raise TrackingError("no")
            super().start_run(start)

    store = Picky()
    sync = two.sync(store)
    for _ in range(TRIES - 1):
        assert not sync.update()
    assert sync.update()
    assert [*sync.refused] == [(RUN.digest, "start")]
    assert {*store.runs} == {SWEEP, OTHER}
    store.refuses = False
    assert two.sync(store).update()
    assert RUN in store.runs


def test_metrics_and_artifacts_that_are_refused_cost_no_result(two: MadeSweep) -> None:
    class Full(Troubled):
        def log_artifact(self, *_: object, **__: object) -> None:
            raise TrackingError("the bucket is full")

    store = Full()
    two.epoch(0, {"poison": 1.0})
    two.epoch(0)
    two.finish(0)
    sync = two.sync(store)
    assert sync.update()
    history = store.runs[RUN].history
    assert [point.step for point in history["train/loss"]] == [0, 1, 2]
    assert "poison" not in history
    assert (store.runs[RUN].state, OTHER in store.runs) == ("finished", True)
    assert sync.refused.pop((RUN.digest, "epochs from 0: poison")) == "poisonous"
    assert {part for _, part in sync.refused} == {"config.json", COMPARISON_INPUT}
    assert two.sync(store).count_unsent() == 1
    mended = Troubled()
    mended.runs, mended.poison = store.runs, {}
    again = two.sync(mended)
    assert again.update()
    assert {*mended.runs[RUN].artifacts} == {"config.json"}
    assert {*mended.runs[SWEEP].artifacts} == {COMPARISON_INPUT}
    assert again.count_unsent() == 0


@pytest.mark.parametrize("pause", [0, 1e9])
def test_a_sweep_that_runs_can_be_compared_as_of_an_end_of_a_run(
    two: MadeSweep, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """A large sweep does not send all of its runs at each end of one."""
    monkeypatch.setattr("carft_sweep.sweeps.results.sync._INPUT_PAUSE", pause)
    store = Troubled()

    def sent_states() -> list[str]:
        text = store.runs[SWEEP].artifacts[COMPARISON_INPUT].decode()
        return [run.state for run in read_comparison_input(text, "made")[1].records[:2]]

    sync = two.sync(store)
    assert sync.update()
    assert COMPARISON_INPUT not in store.runs[SWEEP].artifacts
    expected = (["done", "running"], ["done", "running" if pause else "done"])
    for number, states in enumerate(expected):
        two.finish(number)
        sync.note(digest_of(number))
        assert sync.update()
        assert sent_states() == states
    two.end()
    sync.end_driver()
    assert sync.update()
    assert sent_states() == ["done", "done"]


def test_a_run_of_another_sweep_is_sent_when_it_is_done(two: MadeSweep) -> None:
    store = Troubled()
    other = SweepSync(two.home, two.ledger, store, owner="somebody else")
    assert other.update()
    assert store.runs == {}
    two.finish(0)
    other.note(RUN.digest)
    assert other.update()
    assert {*store.runs} == {SWEEP, RUN}


def test_the_sweep_has_the_files_of_its_folder_once_it_has_ended(two: MadeSweep) -> None:
    store = Troubled()
    two.finish(0)
    two.fail(1)
    folder = two.home.sweep("made")
    (folder / "report.html").write_text("<p>")
    two.end()
    compared = json.loads((folder / "comparison.json").read_text())
    assert two.sync(store, driven=False).update()
    sweep = store.runs[SWEEP]
    tables = {"comparison.json", "comparison.md", "comparison.csv"}
    assert {*sweep.artifacts} == {"report.html", COMPARISON_INPUT, *tables}
    assert (sweep.state, sweep.ended) == ("finished", 2000)
    assert sweep.tags["carft.verdict"] == compared["verdict"] != ""
    assert sweep.tags["carft.selected"] == compared["selected"]["label"] == "car_ft kl_weight=0"
    assert sweep.tags["carft.overrides"] == "seeds=1"
    assert "artifact:report.html" in sweep.tags["mlflow.note.content"]
    assert store.runs[OTHER].tags["carft.failure_message"] == "train/loss is nan"


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_crash_at_any_call_leaves_each_arm_once(made: MadeSweep, is_lost: bool) -> None:
    before, reference = Troubled(), MemoryTracker()
    for number in range(2):
        end_run(made, made.propose(), 0.1 * number)
    made.ledger.remember("merges", ["wise_ft@0.5"])
    made.end()
    assert made.sync(before, driven=False).update()
    assert {*arms_of(before)} > {"car_ft kl_weight=0", "car_ft kl_weight=1 + wise_ft@0.5"}
    made.ledger.remember("merges", [])
    end_run(made, made.propose(), 0.3)
    end_run(made, 0, 0.2)
    made.ledger.remember(OUTCOME, {"state": "done", "at": 3.0})
    sent = made.home.sweep("made") / "sent"
    sent_before = sent.rename(sent.with_name("kept"))
    sync_sweep(made.home, "made", reference)
    assert "car_ft kl_weight=1 + wise_ft@0.5" not in arms_of(reference)
    is_over = False
    for calls in itertools.count():
        shutil.rmtree(sent)
        shutil.copytree(sent_before, sent)
        store = Troubled()
        store.runs = deepcopy(before.runs)
        store.before, store.after = Trouble(calls, is_crash=True, is_lost=is_lost).hooks()
        try:
            made.sync(store, driven=False).update()
            is_over = True
        except Crash:
            pass
        if "car_ft kl_weight=2" in arms_of(store):  # they take long on a slow server
            assert store.runs[SWEEP].state == "finished"
        store.before = store.after = nothing
        assert made.sync(store, driven=False).update()
        assert arms_of(store) == arms_of(reference)
        if is_over:
            break
    assert calls > 20


def end_run(made: MadeSweep, number: int, accuracy: float) -> None:
    """Finish a run, or measure it again with another result."""
    if made.ledger.proposals()[number].state == "running":
        made.start(number)
        made.finish(number)
    for label in ("unmerged", "wise_ft@0.5"):
        measured: dict[str, Any] = {"digest": label, "step": 0, "values": {}, "facts": {}}
        metrics = {"id/val/top1": accuracy, "ood/mean/top1": accuracy / 2}
        made.write(number, f"evaluations/{label}/metrics.json", {**measured, "metrics": metrics})


def arms_of(store: MemoryTracker) -> dict[str, object]:
    """What a reader sees of each arm: the newest value of each metric."""

    def seen(run: MemoryRun) -> tuple[object, ...]:
        values = {name: max(points).value for name, points in run.history.items()}
        return run.state, run.name, run.params, values

    arms = [run for key, run in store.runs.items() if key.arm]
    by_label: dict[str, object] = {str(run.params["arm"]): seen(run) for run in arms}
    assert len(by_label) == len(arms)
    return by_label


def steps(store: MemoryTracker, name: str = LOSS) -> list[int]:
    return [point.step for point in store.runs[RUN].history.get(name, [])]


def test_points_are_sent_within_an_epoch(two: MadeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: now[0]})
    monkeypatch.setattr("carft_sweep.sweeps.results.sync.time", clock)
    store = Troubled()
    sync = two.sync(store)
    assert sync.update()
    calls = store.calls
    for _ in range(3):
        two.point(0)
    now[0] = 9.0
    assert sync.update()
    assert (steps(store), store.calls) == ([], calls)
    now[0] = 10.0
    assert sync.update()
    assert (steps(store), steps(store, CPU), store.calls) == ([1, 2, 3], [1, 2, 3], calls + 1)
    two.point(0)
    now[0] = 20.0
    assert sync.update()
    now[0] = 30.0
    assert sync.update()
    assert (steps(store), store.calls) == ([1, 2, 3, 4], calls + 2), "what was sent is not again"


def test_a_drivers_thread_sends_them(two: MadeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("results.sync", "scheduler.session"):
        monkeypatch.setattr(f"carft_sweep.sweeps.{module}.EVERY", 0.01)
    monkeypatch.setattr(session, "PACE", 0.01)
    store = MemoryTracker()
    syncs = Syncs(two.home, two.ledger, store, two.runs.owner)
    try:
        assert syncs.flush()
        two.point(0)
        deadline = time.monotonic() + 60
        while not steps(store) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert steps(store) == [1]
    finally:
        syncs.close()


def test_a_run_without_points_and_one_with_a_damaged_file_are_sent(two: MadeSweep) -> None:
    two.finish(0)
    two.end()
    store = MemoryTracker()
    sync_sweep(two.home, "made", store)
    assert steps(store) == []
    (two.runs.folder(digest_of(0)) / FILE).write_bytes(b"\xff\n[]\n{}\n")
    again = MemoryTracker()
    assert not sync_sweep(two.home, "made", again).unreadable
    assert (again.runs[RUN].state, steps(again)) == ("finished", [])
