"""What holds for every engine, so that a sweep comes to the same wherever it runs."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import Engine, Job, Wait
from carft_sweep.sweeps.scheduler.pruning import SeedwisePruner
from carft_sweep.sweeps.spec.settings import Asha
from tests.sweeps.engines.conftest import SLOW_RAY, MakeEngine, MakeJob
from tests.sweeps.toy_runs import ENVIRONMENT, REPLAY, Recorder, gone_within

on_ray_if_slow = pytest.mark.parametrize("engine", ["in process", "local", SLOW_RAY], indirect=True)
"""For what the processes decide that Ray's actors supervise as well, and for what a recorded stream
shows of both engines."""


@on_ray_if_slow
def test_jobs_run_in_order_each_requested_when_there_is_room_and_told_whole(
    engine: Engine, job: MakeJob
) -> None:
    class Asked(Recorder):
        def next_job(self) -> Job | Wait:
            self.events.append(("asked", ""))
            return super().next_job()

    recorder = Asked([job("a", epochs=2), Wait.LATER, job("b", epochs=1)])
    engine.run(recorder)
    assert [event for event, _ in itertools.groupby(recorder.events)] == [
        *[("asked", ""), ("started", "a"), ("epoch 1", "a"), ("epoch 2", "a"), ("finished", "a")],
        *[("asked", ""), ("started", "b"), ("epoch 1", "b"), ("finished", "b"), ("asked", "")],
    ]
    assert recorder.results["b"]["seed"] == 5


@on_ray_if_slow
def test_a_decision_stops_the_run_and_the_next_follows(engine: Engine, job: MakeJob) -> None:
    recorder = Recorder([job("a", epochs=9), job("b", epochs=1)])
    recorder.decide = lambda job, report: (
        Decision.STOP if job.digest == "a" and report["epoch"] == 2 else Decision.CONTINUE
    )
    engine.run(recorder)
    assert recorder.events[2:4] == [("epoch 2", "a"), ("stopped", "a")]
    assert recorder.events[-1] == ("finished", "b")


def test_stop_lets_the_epoch_end_and_starts_nothing(engine: Engine, job: MakeJob) -> None:
    recorder = Recorder([job("a", epochs=9), job("b"), job("c")])

    def decide(_: Job, report: Mapping[str, Any]) -> Decision:
        if report["epoch"] == 3:
            engine.stop()
        return Decision.CONTINUE

    recorder.decide = decide
    engine.run(recorder)
    assert recorder.events[-2:] == [("epoch 3", "a"), ("stopped", "a")]
    assert len(recorder.jobs) == 2


@on_ray_if_slow
def test_stopped_before_it_begins_it_runs_nothing(engine: Engine, job: MakeJob) -> None:
    recorder = Recorder([job("a")])
    engine.stop()
    engine.run(recorder)
    assert (recorder.events, len(recorder.jobs)) == ([], 1)


@on_ray_if_slow
def test_a_failure_has_its_class_and_the_next_run_runs(engine: Engine, job: MakeJob) -> None:
    raised = {
        "nan": ("nan", "train/loss is nan in epoch 3"),
        "memory": ("out_of_memory", "OutOfMemoryError: tried to allocate 3 GiB"),
        "host memory": ("out_of_memory", "MemoryError"),
        "request": ("data", "data.root: there is no folder x"),
        "key": ("crashed", "KeyError: 'weights'"),
    }
    jobs: list[Job | Wait] = [job(error, epochs=1, do="raise", error=error) for error in raised]
    recorder = Recorder([*jobs, job("last")])
    engine.run(recorder)
    failures = recorder.failures
    assert {error: (failure.kind, failure.message) for error, failure in failures.items()} == raised
    assert all("Traceback" in failure.log_tail for failure in failures.values())
    (node,) = {failure.node for failure in failures.values()}
    assert node
    assert recorder.events[-1] == ("finished", "last")


def test_an_error_of_the_handler_ends_the_execution(engine: Engine, job: MakeJob) -> None:
    def decide(job: Job, report: Mapping[str, Any]) -> Decision:
        raise KeyError(f"no trial {job.digest} at {report['epoch']}")

    recorder = Recorder([job("a"), job("b")])
    recorder.decide = decide
    with pytest.raises(KeyError, match="no trial a at 1"):
        engine.run(recorder)
    assert recorder.failures == {}


@on_ray_if_slow
def test_a_module_of_the_users_own_is_imported_before_the_run(
    engine: Engine, job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "own_methods.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
    )
    (tmp_path / "broken_methods.py").write_text("raise ValueError('half written')\n")
    good, bad = (
        replace(job(name), imports=(str(tmp_path / f"{name}_methods.py"),))
        for name in ("own", "broken")
    )
    recorder = Recorder([good, bad])
    engine.run(recorder)
    assert (tmp_path / "imported").exists()
    assert "own" in recorder.results
    failure = recorder.failures["broken"]
    assert (failure.kind, "half written" in failure.message) == ("data", True)


def test_a_dead_worker_costs_its_run_alone(supervised: MakeEngine, job: MakeJob) -> None:
    died = {
        "kill": "the worker process was killed by SIGKILL",
        "segfault": "the worker process was killed by SIGSEGV",
        "exit": "the worker process ended by itself with status 7",
    }
    recorder = Recorder([*[job(do, do=do) for do in died], job("last")])
    supervised().run(recorder)
    assert {do: failure.message for do, failure in recorder.failures.items()} == died
    assert {failure.kind for failure in recorder.failures.values()} == {"crashed"}
    assert "epoch=2/2" in recorder.failures["kill"].log_tail
    assert recorder.events[-1] == ("finished", "last")
    assert len(set(recorder.workers)) == 4


def test_a_worker_that_is_silent_or_takes_too_long_is_replaced(
    supervised: MakeEngine, job: MakeJob
) -> None:
    for do, limit, message in (
        ("freeze", {"silence": 5}, "the worker showed no life for 5 s"),
        ("sleep", {"timeout": 3}, "the run took longer than 3 s"),
    ):
        recorder = Recorder([job("a", do=do, seconds=60), job("b")])
        supervised(**limit).run(recorder)
        failure = recorder.failures["a"]
        assert (failure.kind, failure.message) == ("timeout", message)
        assert recorder.events[-1] == ("finished", "b")
        assert gone_within(10, recorder.pids()[0])
    assert recorder.beats >= 1


class Busy(Recorder):
    """Keeps the driver busy at the first report."""

    seconds = 8.0

    def reported(self, job: Job, report: Mapping[str, Any]) -> Decision:
        time.sleep(self.seconds)
        self.seconds = 0.0
        return super().reported(job, report)


@pytest.mark.parametrize("make_for_two", ["two_workers", SLOW_RAY], indirect=True)
def test_a_driver_that_is_busy_for_longer_than_a_worker_may_be_silent_gives_no_run_up(
    make_for_two: MakeEngine, job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from carft_sweep.sweeps.engines import ray_tune

    monkeypatch.setattr(ray_tune, "LOOK", 0.0)
    monkeypatch.setattr(ray_tune, "GRACE", 2.0)
    recorder = Busy([job("a", pause=0.5), job("b", pause=0.5), job("c")])
    make_for_two(silence=5).run(recorder)
    assert (recorder.failures, set(recorder.results)) == ({}, {"a", "b", "c"})


def test_a_warm_worker_serves_until_memory_is_full_and_what_it_prints_is_its_runs_log(
    supervised: MakeEngine, job: MakeJob, tmp_path: Path
) -> None:
    failing, full = (job(error, do="raise", error=error) for error in ("nan", "memory"))
    printing = [job(digest, do="print") for digest in "ac"]
    recorder = Recorder([printing[0], failing, printing[1], full, job("d")])
    supervised().run(recorder)
    *warm, cold = recorder.pids()
    assert (len({*warm}), cold in warm) == (1, False)
    assert recorder.results["a"]["pid"] == warm[0] != os.getpid()
    for digest in ("a", "c"):
        assert "forged" not in recorder.results[digest]
        log = (tmp_path / digest / "log.txt").read_text()
        assert [log.count(text) for text in ("to stdout", "to stderr", "forged")] == [1, 1, 1]


def test_stop_now_ends_runs_in_the_middle_of_an_epoch(
    make_for_two: MakeEngine, job: MakeJob
) -> None:
    engine = make_for_two()
    long = [job(digest, epochs=1, do="sleep", seconds=120) for digest in "ab"]
    recorder = Recorder([*long, job("c")])

    def decide(*_: object) -> Decision:
        if [event for event, _ in recorder.events].count("epoch 1") == 2:
            threading.Timer(0.5, engine.stop, kwargs={"now": True}).start()
        return Decision.CONTINUE

    recorder.decide = decide
    began = time.monotonic()
    engine.run(recorder)
    assert time.monotonic() - began < 60
    assert {*recorder.events[-2:]} == {("stopped", "a"), ("stopped", "b")}
    assert (recorder.failures, recorder.results, len(recorder.jobs)) == ({}, {}, 1)


class Judging(Recorder):
    """Stops what successive halving stops, and writes down each decision."""

    def __init__(self, jobs: list[Job | Wait]) -> None:
        super().__init__(jobs)
        rule = Asha(metric="id/val/top1", min_epochs=1, reduction_factor=2)
        self.judge = SeedwisePruner(rule, "maximize")
        self.decided: list[tuple[str, int, str]] = []
        self.decide = self.judged

    def judged(self, job: Job, report: Mapping[str, Any]) -> Decision:
        epoch, value = report["epoch"], report["metrics"]["id/val/top1"]
        last = epoch == report["epochs"]
        reason = None if last else self.judge.report(int(job.digest), 0, epoch, value)
        decision = Decision.CONTINUE if reason is None else Decision.STOP
        self.decided.append((job.digest, epoch, decision.value))
        return decision


RECORDED = [
    [0.31, 0.42, 0.47, 0.52, 0.55],
    [0.29, 0.35, 0.41, 0.44, 0.46],
    [0.35, 0.47, 0.53, 0.58, 0.60],
    [0.33, 0.40, 0.51, 0.57, 0.61],
    [0.12, 0.14, 0.15, 0.15, 0.16],
    [0.36, 0.44, 0.50, 0.51, 0.51],
    [0.34, 0.48, 0.55, 0.60, 0.63],
    [0.37, 0.49, 0.54, 0.61, 0.62],
]
"""Validation accuracy by epoch, of eight runs."""


@pytest.mark.xdist_group("ray")
def test_a_recorded_stream_gets_the_same_decisions_and_ends_in_both_engines(
    on_local: MakeEngine, on_ray: MakeEngine, job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from carft_sweep.sweeps.engines.ray_tune import JobSearcher

    suggested: list[object] = []

    def suggest(self: JobSearcher, trial_id: str) -> Any:
        config = original(self, trial_id)
        suggested.extend([config] if isinstance(config, dict) else [])
        return config

    original = JobSearcher.suggest
    monkeypatch.setattr(JobSearcher, "suggest", suggest)
    streams = []
    for make in (on_local, on_ray):
        jobs: list[Job | Wait] = [job(str(i), values=v) for i, v in enumerate(RECORDED)]
        judging = Judging(jobs)
        make(REPLAY).run(judging)
        streams.append((judging.decided, judging.events))
        assert len({*judging.pids()}) == 1
    assert streams[0] == streams[1]
    assert len(suggested) == 1
    ends = {event for event, _ in streams[0][1]} & {"finished", "stopped", "failed"}
    assert ends == {"finished", "stopped"}


@pytest.mark.xdist_group("ray")
def test_a_run_has_the_threads_that_were_asked_and_no_gpu_when_it_asked_for_none(
    on_local: MakeEngine, on_ray: MakeEngine, job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    threads = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    for engine in (on_local(ENVIRONMENT, threads=2, devices=[""]), on_ray(ENVIRONMENT)):
        recorder = Recorder([job("a")])
        engine.run(recorder)
        assert recorder.results["a"] == {**threads, "CUDA_VISIBLE_DEVICES": ""}
