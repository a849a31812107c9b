"""Several runs at once in the local engine: each has its share, and costs the others nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import Job, Wait
from carft_sweep.sweeps.engines.local import PEAK, LocalEngine, SharedMemory
from tests.sweeps.engines.conftest import MakeEngine, MakeJob, Scripted
from tests.sweeps.toy_runs import Recorder, is_running


class Watching(Scripted):
    """Counts the runs that are under way at once."""

    handed_out = most = 0

    def next_job(self) -> Job | Wait:
        job = super().next_job()
        self.handed_out += isinstance(job, Job)
        self.most = max(self.most, self.under_way())
        return job

    def under_way(self) -> int:
        return self.handed_out - len(self.order("finished", "failed"))


def test_two_runs_are_under_way_at_once_and_never_three_and_a_crash_costs_the_other_nothing(
    on_two_workers: MakeEngine, job: MakeJob, tmp_path: Path
) -> None:
    jobs: list[Job | Wait] = [job("a", do="wait"), job("b", do="segfault"), *map(job, "cd")]
    recorder = Watching(jobs, finished_d=lambda _: (tmp_path / "go").touch())
    on_two_workers().run(recorder)
    assert recorder.failures["b"].message == "the worker process was killed by SIGSEGV"
    ends = recorder.order("failed", "finished")
    assert ends == ["failed b", "finished c", "finished d", "finished a"]
    assert (recorder.most, len(set(recorder.pids()))) == (2, 3)


def test_a_waiting_job_begins_when_one_has_ended_and_the_last_can_be_tried_again(
    on_two_workers: MakeEngine, job: MakeJob
) -> None:
    class Waiting(Scripted):
        def next_job(self) -> Job | Wait:
            waits = len(self.jobs) == 1 and "a" not in self.results and not self.failures
            return Wait.LATER if waits else super().next_job()

    jobs: list[Job | Wait] = [job("a", epochs=3, pause=0.1), job("b", do="raise", error="key")]
    recorder = Waiting(jobs, failed=lambda _: recorder.jobs.append(job("b again")))
    on_two_workers().run(recorder)
    assert recorder.events.index(("finished", "a")) < recorder.events.index(("started", "b"))
    assert set(recorder.results) == {"a", "b again"}


def test_workers_started_early_serve_the_first_runs(
    on_two_workers: MakeEngine, job: MakeJob
) -> None:
    engine = on_two_workers()
    engine.start()
    assert isinstance(engine, LocalEngine)
    started = {worker._worker.pid for worker in engine._workers if worker._worker is not None}
    assert len(started) == 2
    recorder = Recorder([job("a"), job("b")])
    engine.run(recorder)
    engine.close()
    assert set(recorder.pids()) <= started
    assert not any(map(is_running, started))


def test_one_run_has_a_memory_until_something_is_known_and_then_as_many_as_fit() -> None:
    memory = SharedMemory({"a": 1000.0, "b": 500.0, "c": 0.0})
    for peak, fits in ((None, [1, 1, 1]), (240.0, [4, 2, 1]), (400.0, [2, 1, 1]), (10, [2, 1, 1])):
        memory.learn(peak)
        assert [memory.holds(name) for name in "abc"] == fits
    assert memory.holds(None) > 1000


def test_a_memory_that_was_too_small_for_several_is_shared_by_fewer() -> None:
    memory = SharedMemory({"a": 1000.0})
    memory.learn(240.0)
    for runs, narrowed, room in ((4, True, 3), (2, True, 1), (1, False, 1)):
        assert (memory.narrow("a", runs), memory.holds("a")) == (narrowed, room)
    assert not memory.narrow("b", 4)  # as many as the user wants


def test_the_first_run_is_alone_until_it_reports(on_local: MakeEngine, job: MakeJob) -> None:
    def decide(_: Job, report: Mapping[str, Any]) -> Decision:
        if report["epoch"] > 1:
            report["metrics"][PEAK] = 300.0
        return Decision.CONTINUE

    engine = on_local(devices=[None] * 3, memory=SharedMemory({None: 700.0}))
    # Long enough that b begins during it on a busy machine too.
    first = job("a", epochs=8, pause=0.4)
    recorder = Recorder([first, *(job(d, epochs=1, pause=0.4) for d in "bc")])
    recorder.decide = decide
    engine.run(recorder)
    events = recorder.events
    assert events[:3] == [("started", "a"), ("epoch 1", "a"), ("epoch 2", "a")]
    assert events.index(("started", "b")) < events.index(("finished", "a"))
    assert events.index(("started", "c")) > min(events.index(("finished", d)) for d in "ab")


def test_runs_whose_memory_is_computed_begin_together(on_local: MakeEngine, job: MakeJob) -> None:
    needs = {"a": 300.0, "b": 340.0, "c": 10.0}
    memory = SharedMemory({None: 700.0}, lambda config: needs[config["run"]])
    recorder = Watching([job(d, epochs=3, pause=0.4, run=d) for d in "abc"])
    on_local(devices=[None] * 3, memory=memory).run(recorder)
    assert (recorder.most, memory.holds(None)) == (2, 2)


@pytest.mark.parametrize(("size", "narrowed"), [(1000.0, True), (None, False)])
def test_a_run_that_was_out_of_memory_beside_another_is_alone_the_next_time(
    on_local: MakeEngine, job: MakeJob, tmp_path: Path, size: float | None, narrowed: bool
) -> None:
    def go_on(_: Job) -> None:
        recorder.most = recorder.under_way()
        recorder.jobs += [job("again", do="raise", error="memory"), job("c"), job("d")]
        (tmp_path / "go").touch()

    memory = SharedMemory({} if size is None else {None: size})
    memory.learn(240.0)
    jobs: list[Job | Wait] = [job("a", do="wait"), job("b", do="raise", error="memory")]
    recorder = Watching(jobs, failed_b=go_on)
    on_local(devices=[None] * 2, memory=memory).run(recorder)
    first, second = recorder.failures["b"], recorder.failures["again"]
    assert (first.narrowed, second.narrowed) == (narrowed, False)
    assert first.message.endswith("at most 1 at once from now on") is narrowed
    assert set(recorder.results) == {"a", "c", "d"}
    assert recorder.most == (1 if narrowed else 2)
