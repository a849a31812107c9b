"""What holds for every engine, so that a sweep comes to the same wherever it runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.sweeps.engines.base import Decision, Engine, Job, Wait
from carft_sweep.sweeps.scheduler.pruning import SeedwisePruner
from carft_sweep.sweeps.spec.settings import Asha
from tests.sweeps.engines.conftest import MakeEngine, MakeJob, by_job, has_two
from tests.sweeps.toy_runs import ENVIRONMENT, REPLAY, Recorder


def test_jobs_run_in_order_and_each_is_told_whole(engine: Engine, job: MakeJob) -> None:
    recorder = Recorder([job("a", epochs=2), Wait.LATER, job("b", epochs=1)])
    engine.run(recorder)
    assert by_job(engine, recorder) == [
        ("started", "a"),
        ("epoch 1", "a"),
        ("epoch 2", "a"),
        ("finished", "a"),
        ("started", "b"),
        ("epoch 1", "b"),
        ("finished", "b"),
    ]
    assert recorder.results["b"]["seed"] == 5


def test_with_room_for_one_run_the_next_job_is_asked_when_the_last_one_has_ended(
    engine: Engine, job: MakeJob
) -> None:
    class Asked(Recorder):
        def next_job(self) -> Job | Wait:
            self.events.append(("asked", ""))
            return super().next_job()

    if has_two(engine):
        pytest.skip("it has room for two runs")
    recorder = Asked([job("a", epochs=1), job("b", epochs=1)])
    engine.run(recorder)
    assert recorder.events == [
        *[("asked", ""), ("started", "a"), ("epoch 1", "a"), ("finished", "a")],
        *[("asked", ""), ("started", "b"), ("epoch 1", "b"), ("finished", "b")],
        ("asked", ""),
    ]


def test_a_run_that_is_decided_against_stops_there_and_the_next_one_runs(
    engine: Engine, job: MakeJob
) -> None:
    recorder = Recorder([job("a", epochs=9), job("b", epochs=1)])
    recorder.decide = lambda job, report: (
        Decision.STOP if job.digest == "a" and report["epoch"] == 2 else Decision.CONTINUE
    )
    engine.run(recorder)
    told = by_job(engine, recorder)
    assert told[2:4] == [("epoch 2", "a"), ("stopped", "a")]
    assert told[-1] == ("finished", "b")


def test_stop_closes_the_running_job_after_its_epoch_and_starts_nothing_more(
    engine: Engine, job: MakeJob
) -> None:
    recorder = Recorder([job("a", epochs=9), job("b", epochs=10_000, pause=0.01), job("c")])

    def decide(job: Job, report: Mapping[str, Any]) -> Decision:
        if job.digest == "a" and report["epoch"] == 3:
            engine.stop()
        return Decision.CONTINUE

    recorder.decide = decide
    engine.run(recorder)
    told = by_job(engine, recorder)
    ends = [event for event in told if event[0] in ("stopped", "finished")]
    assert [event for event in told if event[1] == "a"][-2:] == [("epoch 3", "a"), ("stopped", "a")]
    if has_two(engine):
        assert {digest for _, digest in ends} == {"a", "b"}
    else:
        assert ends == [("stopped", "a")]
    assert ("started", "c") not in told


def test_an_engine_that_was_stopped_before_it_began_asks_for_nothing(
    engine: Engine, job: MakeJob
) -> None:
    recorder = Recorder([job("a")])
    engine.stop()
    engine.run(recorder)
    assert recorder.events == []
    assert len(recorder.jobs) == 1


def test_what_a_run_raises_is_its_class_of_failure_and_the_next_one_runs(
    engine: Engine, job: MakeJob
) -> None:
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
    assert {error: (f.kind, f.message) for error, f in failures.items()} == raised
    assert all("Traceback" in failure.log_tail for failure in failures.values())
    assert len({failure.node for failure in failures.values()}) == 1
    assert failures["nan"].node
    assert by_job(engine, recorder)[-1] == ("finished", "last")


def test_a_handler_that_raises_ends_the_execution_with_its_own_error(
    engine: Engine, job: MakeJob
) -> None:
    def decide(job: Job, report: Mapping[str, Any]) -> Decision:
        if job.digest == "b":
            return Decision.CONTINUE
        raise KeyError(f"no trial {job.digest} at {report['epoch']}")

    recorder = Recorder([job("a"), job("b")])
    recorder.decide = decide
    with pytest.raises(KeyError, match="no trial a at 1"):
        engine.run(recorder)
    assert recorder.failures == {}


def test_a_module_of_the_users_own_is_imported_before_the_run(
    engine: Engine, job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "own_methods.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
    )
    (tmp_path / "broken_methods.py").write_text("raise ValueError('half written')\n")
    good = Job(**{**vars(job("good")), "imports": (str(tmp_path / "own_methods.py"),)})
    bad = Job(**{**vars(job("bad")), "imports": (str(tmp_path / "broken_methods.py"),)})
    recorder = Recorder([good, bad])
    engine.run(recorder)
    assert (tmp_path / "imported").exists()
    assert "good" in recorder.results
    assert recorder.failures["bad"].kind == "data"
    assert "half written" in recorder.failures["bad"].message


def test_a_worker_that_dies_costs_its_run_and_a_fresh_one_goes_on(
    make: MakeEngine, job: MakeJob
) -> None:
    died = {
        "kill": "the worker process was killed by SIGKILL",
        "segfault": "the worker process was killed by SIGSEGV",
        "exit": "the worker process ended by itself with status 7",
    }
    recorder = Recorder([*[job(do, do=do) for do in died], job("last")])
    engine = make()
    engine.run(recorder)
    assert {do: failure.message for do, failure in recorder.failures.items()} == died
    assert {failure.kind for failure in recorder.failures.values()} == {"crashed"}
    assert "epoch=2/2" in recorder.failures["kill"].log_tail
    assert by_job(engine, recorder)[-1] == ("finished", "last")
    assert len(set(recorder.workers)) == 4


def test_a_silent_worker_is_ended_and_a_fresh_one_goes_on(
    supervised: MakeEngine, job: MakeJob
) -> None:
    recorder = Recorder([job("a", do="freeze"), job("b")])
    engine = supervised(silence=5)
    engine.run(recorder)
    assert recorder.failures["a"].kind == "timeout"
    assert recorder.failures["a"].message == "the worker showed no life for 5 s"
    assert by_job(engine, recorder)[-1] == ("finished", "b")


class Busy(Recorder):
    """Keeps the driver busy once, at a call."""

    def __init__(self, jobs: list[Job | Wait], call: str, seconds: float) -> None:
        super().__init__(jobs)
        self.call: str | None = call
        self.seconds = seconds

    def work(self, call: str) -> None:
        if call == self.call:
            self.call = None
            time.sleep(self.seconds)

    def next_job(self) -> Job | Wait:
        self.work(f"next_job {len(self.jobs)}")
        return super().next_job()

    def reported(self, job: Job, report: Mapping[str, Any]) -> Decision:
        self.work("reported")
        return super().reported(job, report)


@pytest.mark.parametrize("call", ["next_job 1", "reported"])
def test_a_driver_that_is_busy_for_longer_than_a_worker_may_be_silent_gives_no_run_up(
    make_for_two: MakeEngine, job: MakeJob, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """What the driver does not listen to is not silence."""
    from carft_sweep.sweeps.engines import ray_tune

    monkeypatch.setattr(ray_tune, "LOOK", 0.0)
    monkeypatch.setattr(ray_tune, "GRACE", 2.0)
    recorder = Busy([job("a", pause=0.5), job("b", pause=0.5), job("c")], call, 10.0)
    make_for_two(silence=5).run(recorder)
    assert recorder.call is None
    assert recorder.failures == {}
    assert set(recorder.results) == {"a", "b", "c"}


def test_a_run_that_takes_too_long_is_ended_though_it_shows_life(
    supervised: MakeEngine, job: MakeJob
) -> None:
    recorder = Recorder([job("a", do="sleep", seconds=60)])
    supervised(timeout=4).run(recorder)
    assert recorder.failures["a"].kind == "timeout"
    assert recorder.failures["a"].message == "the run took longer than 4 s"
    assert recorder.beats >= 2


def test_one_warm_worker_serves_every_run_and_a_fresh_one_what_follows_a_full_memory(
    make: MakeEngine, job: MakeJob
) -> None:
    recorder = Recorder(
        [
            *[job("a"), job("b", do="raise", error="nan"), job("c")],
            *[job("full", do="raise", error="memory"), job("d")],
        ]
    )
    engine = make()
    if has_two(engine):
        pytest.skip("which of them serves a run is not decided")
    engine.run(recorder)
    a, b, c, full, d = recorder.pids()
    assert a == b == c == full != d
    assert recorder.results["a"]["pid"] == a != os.getpid()


def test_what_a_run_prints_is_its_log_and_never_the_protocol(
    supervised: MakeEngine, job: MakeJob, tmp_path: Path
) -> None:
    recorder = Recorder([job("a", do="print"), job("b", do="print")])
    supervised().run(recorder)
    assert "forged" not in recorder.results["a"]
    for digest in ("a", "b"):
        log = (tmp_path / digest / "log.txt").read_text()
        assert "to stdout" in log
        assert "to stderr" in log
        assert log.count("forged") == 1


def test_stop_now_ends_a_run_in_the_middle_of_an_epoch(make: MakeEngine, job: MakeJob) -> None:
    engine = make()
    sleeping = [job(digest, do="sleep", seconds=120) for digest in "ab"]
    recorder = Recorder([*sleeping, job("c")])
    threading.Timer(4, engine.stop, kwargs={"now": True}).start()
    began = time.monotonic()
    engine.run(recorder)
    assert time.monotonic() - began < 60
    ends = [event for event in by_job(engine, recorder) if event[0] in ("stopped", "finished")]
    assert ends == [("stopped", digest) for digest in ("ab" if has_two(engine) else "a")]
    assert recorder.failures == {}


def test_an_entry_that_does_not_exist_fails_the_run_with_its_name(
    supervised: MakeEngine, job: MakeJob
) -> None:
    recorder = Recorder([job("a")])
    supervised("tests.sweeps.nowhere:act").run(recorder)
    assert "nowhere" in recorder.failures["a"].message


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
        reason = None if last else self.judge.heard(int(job.digest), 0, epoch, value)
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
    on_local: MakeEngine, on_ray: MakeEngine, job: MakeJob
) -> None:
    told = []
    for make in (on_local, on_ray):
        jobs: list[Job | Wait] = [job(str(i), values=v) for i, v in enumerate(RECORDED)]
        judging = Judging(jobs)
        make(REPLAY).run(judging)
        told.append((judging.decided, judging.events))
    assert told[0] == told[1]
    ends = {event for event, _ in told[0][1]} & {"finished", "stopped", "failed"}
    assert ends == {"finished", "stopped"}


@pytest.mark.xdist_group("ray")
def test_a_run_has_the_threads_that_were_asked_and_no_gpu_when_it_asked_for_none(
    on_local: MakeEngine, on_ray: MakeEngine, job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for engine in (on_local(ENVIRONMENT, threads=2, devices=[""]), on_ray(ENVIRONMENT)):
        recorder = Recorder([job("a")])
        engine.run(recorder)
        assert recorder.results["a"] == {
            "OMP_NUM_THREADS": "2",
            "MKL_NUM_THREADS": "2",
            "OMP_WAIT_POLICY": "passive",
            "CUDA_VISIBLE_DEVICES": "",
        }
