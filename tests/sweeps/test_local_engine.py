"""Both engines keep the contract of the seam, and the local one outlives any worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sweeps.engines.base import Decision, Engine, Failure, Job, Wait
from sweeps.engines.in_process import InProcessEngine
from sweeps.engines.local import LocalEngine
from tests.sweeps.toy_runs import ENTRY

ROOT = Path(__file__).parents[2]


class Recorder:
    """A handler that gives out jobs in order and writes down what it is told."""

    def __init__(self, jobs: list[Job | Wait]) -> None:
        self.jobs = jobs
        self.events: list[tuple[str, str]] = []
        self.results: dict[str, Mapping[str, Any]] = {}
        self.failures: dict[str, Failure] = {}
        self.workers: list[str] = []
        self.beats = 0
        self.decide: Callable[[Job, Mapping[str, Any]], Decision] = lambda *_: Decision.CONTINUE

    def next_job(self) -> Job | Wait:
        return self.jobs.pop(0) if self.jobs else Wait.NEVER

    def started(self, job: Job, worker: str) -> None:
        self.events.append(("started", job.digest))
        self.workers.append(worker)

    def alive(self, job: Job) -> None:
        del job
        self.beats += 1

    def reported(self, job: Job, report: Mapping[str, Any]) -> Decision:
        self.events.append((f"epoch {report['epoch']}", job.digest))
        return self.decide(job, report)

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        self.events.append(("finished", job.digest))
        self.results[job.digest] = result

    def stopped(self, job: Job) -> None:
        self.events.append(("stopped", job.digest))

    def failed(self, job: Job, failure: Failure) -> bool:
        self.events.append(("failed", job.digest))
        self.failures[job.digest] = failure
        return False


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    def make(digest: str, **config: Any) -> Job:
        return Job(digest, f"run {digest}", config, 5, tmp_path / digest, tmp_path / "cache")

    return make


@pytest.fixture(params=["local", "in process"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made: Engine = LocalEngine(ENTRY) if request.param == "local" else InProcessEngine(ENTRY)
    with closing(made):
        yield made


@pytest.fixture
def local() -> Iterator[LocalEngine]:
    with closing(LocalEngine(ENTRY, silence=30)) as made:
        yield made


def test_jobs_run_in_order_and_each_is_told_whole(engine: Engine, job: Callable[..., Job]) -> None:
    recorder = Recorder([job("a", epochs=2), Wait.LATER, job("b", epochs=1)])
    engine.run(recorder)
    assert recorder.events == [
        ("started", "a"),
        ("epoch 1", "a"),
        ("epoch 2", "a"),
        ("finished", "a"),
        ("started", "b"),
        ("epoch 1", "b"),
        ("finished", "b"),
    ]
    assert recorder.results["b"]["seed"] == 5


def test_a_run_that_is_decided_against_stops_there_and_the_next_one_runs(
    engine: Engine, job: Callable[..., Job]
) -> None:
    recorder = Recorder([job("a", epochs=9), job("b", epochs=1)])
    recorder.decide = lambda job, report: (
        Decision.STOP if job.digest == "a" and report["epoch"] == 2 else Decision.CONTINUE
    )
    engine.run(recorder)
    assert recorder.events[2:4] == [("epoch 2", "a"), ("stopped", "a")]
    assert recorder.events[-1] == ("finished", "b")


def test_stop_closes_the_running_job_after_its_epoch_and_starts_nothing_more(
    engine: Engine, job: Callable[..., Job]
) -> None:
    recorder = Recorder([job("a", epochs=9), job("b")])

    def decide(job: Job, report: Mapping[str, Any]) -> Decision:
        del job
        if report["epoch"] == 3:
            engine.stop()
        return Decision.CONTINUE

    recorder.decide = decide
    engine.run(recorder)
    assert recorder.events[-2:] == [("epoch 3", "a"), ("stopped", "a")]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        ("nan", "nan", "train/loss is nan in epoch 3"),
        ("memory", "out_of_memory", "OutOfMemoryError: tried to allocate 3 GiB"),
        ("host memory", "out_of_memory", "MemoryError"),
        ("request", "data", "data.root: there is no folder x"),
        ("key", "crashed", "KeyError: 'weights'"),
    ],
)
def test_what_a_run_raises_is_its_class_of_failure_and_the_next_one_runs(
    engine: Engine, job: Callable[..., Job], error: str, kind: str, said: str
) -> None:
    recorder = Recorder([job("a", do="raise", error=error), job("b")])
    engine.run(recorder)
    failure = recorder.failures["a"]
    assert (failure.kind, failure.message) == (kind, said)
    assert "Traceback" in failure.log_tail
    assert recorder.events[-1] == ("finished", "b")


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("kill", "the worker process was killed by SIGKILL"),
        ("segfault", "the worker process was killed by SIGSEGV"),
        ("exit", "the worker process ended by itself with status 7"),
    ],
)
def test_a_worker_that_dies_costs_its_run_and_a_fresh_one_goes_on(
    local: LocalEngine, job: Callable[..., Job], do: str, said: str
) -> None:
    recorder = Recorder([job("a", do=do), job("b")])
    local.run(recorder)
    assert recorder.failures["a"].kind == "crashed"
    assert recorder.failures["a"].message == said
    assert "epoch=2/2" in recorder.failures["a"].log_tail
    assert recorder.events[-1] == ("finished", "b")
    assert len(set(recorder.workers)) == 2


def test_a_silent_worker_is_ended_and_a_fresh_one_goes_on(job: Callable[..., Job]) -> None:
    recorder = Recorder([job("a", do="freeze"), job("b")])
    with closing(LocalEngine(ENTRY, silence=5)) as engine:
        engine.run(recorder)
    assert recorder.failures["a"].kind == "timeout"
    assert recorder.failures["a"].message == "the worker showed no life for 5 s"
    assert recorder.events[-1] == ("finished", "b")


def test_a_run_that_takes_too_long_is_ended_though_it_shows_life(job: Callable[..., Job]) -> None:
    recorder = Recorder([job("a", do="sleep", seconds=60)])
    with closing(LocalEngine(ENTRY, timeout=4)) as engine:
        engine.run(recorder)
    assert recorder.failures["a"].message == "the run took longer than 4 s"
    assert recorder.beats >= 2


def test_one_warm_worker_serves_every_run(local: LocalEngine, job: Callable[..., Job]) -> None:
    recorder = Recorder([job("a"), job("b", do="raise", error="nan"), job("c")])
    local.run(recorder)
    assert len(set(recorder.workers)) == 1
    assert recorder.results["a"]["pid"] == recorder.results["c"]["pid"] != os.getpid()


def test_what_a_run_prints_is_its_log_and_never_the_protocol(
    local: LocalEngine, job: Callable[..., Job], tmp_path: Path
) -> None:
    recorder = Recorder([job("a", do="print"), job("b", do="print")])
    local.run(recorder)
    assert "forged" not in recorder.results["a"]
    for digest in ("a", "b"):
        log = (tmp_path / digest / "log.txt").read_text()
        assert "to stdout" in log
        assert "to stderr" in log
        assert log.count("forged") == 1


def test_stop_now_ends_a_run_in_the_middle_of_an_epoch(
    local: LocalEngine, job: Callable[..., Job]
) -> None:
    recorder = Recorder([job("a", do="sleep", seconds=120), job("b")])
    threading.Timer(4, local.stop, kwargs={"now": True}).start()
    began = time.monotonic()
    local.run(recorder)
    assert time.monotonic() - began < 60
    assert recorder.events[-1] == ("stopped", "a")
    assert recorder.failures == {}


def test_a_worker_ignores_the_terminals_interrupt(
    local: LocalEngine, job: Callable[..., Job]
) -> None:
    recorder = Recorder([job("a", epochs=3)])

    def decide(job: Job, report: Mapping[str, Any]) -> Decision:
        del job
        if report["epoch"] == 1:
            os.kill(int(recorder.workers[0].removeprefix("local:")), signal.SIGINT)
        return Decision.CONTINUE

    recorder.decide = decide
    local.run(recorder)
    assert recorder.events[-1] == ("finished", "a")


def test_a_worker_dies_with_its_driver(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from sweeps.engines.base import Job
from sweeps.engines.local import LocalEngine
from tests.sweeps.test_local_engine import Recorder
from tests.sweeps.toy_runs import ENTRY
place = Path({str(tmp_path)!r})
job = Job("a", "a", {{"do": "sleep", "seconds": 300}}, 0, place / "a", place)
class Telling(Recorder):
    def started(self, job, worker):
        print(worker.removeprefix("local:"), flush=True)
LocalEngine(ENTRY).run(Telling([job]))
"""
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdout.close()
    until = time.monotonic() + 20
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_user_module_of_the_current_folder_does_not_stand_for_another(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "__init__.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    recorder = Recorder([job("a")])
    with closing(LocalEngine(ENTRY)) as engine:
        engine.run(recorder)
    assert recorder.events[-1] == ("finished", "a")


def test_an_entry_that_does_not_exist_fails_the_run_with_its_name(job: Callable[..., Job]) -> None:
    recorder = Recorder([job("a")])
    with closing(LocalEngine("tests.sweeps.nowhere:act")) as engine:
        engine.run(recorder)
    assert "nowhere" in recorder.failures["a"].message


def test_threads_of_a_run_are_what_was_asked(job: Callable[..., Job]) -> None:
    recorder = Recorder([job("a")])
    with closing(LocalEngine("tests.sweeps.test_local_engine:threads", threads=3)) as engine:
        engine.run(recorder)
    assert recorder.results["a"] == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}


def threads(config: Mapping[str, Any], seed: int, **_: Any) -> Mapping[str, Any]:
    """An entry."""
    del config, seed
    return {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
