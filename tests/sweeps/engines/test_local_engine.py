"""The local engine's worker process lives and dies with its driver, and is nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from carft_sweep.carft_core.errors import DownloadFailed, RequestError
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines import supervisor as supervisor_module
from carft_sweep.sweeps.engines.base import POLL, Job
from carft_sweep.sweeps.engines.entry import classify, log_tail
from carft_sweep.sweeps.engines.supervisor import ENDS, TURN, Event, ListeningClock, Supervisor
from carft_sweep.sweeps.secrets import NAMES
from carft_sweep.tracking.location import Lock
from tests.sweeps.engines.conftest import MakeEngine, MakeJob, Scripted
from tests.sweeps.toy_runs import ENTRY, ENVIRONMENT, Recorder, gone_within

ROOT = Path(__file__).parents[3]


def end_of_run(supervisor: Supervisor) -> Event:
    """Let a run continue to its end, and return that event."""
    while (event := supervisor.next(POLL)) is None or event["kind"] not in ENDS:
        if event is not None and event["kind"] == "report":
            supervisor.answer(Decision.CONTINUE)
    return event


def test_a_worker_ignores_the_terminals_interrupt(on_local: MakeEngine, job: MakeJob) -> None:
    def decide(_: Job, report: Mapping[str, Any]) -> Decision:
        if report["epoch"] == 1:
            os.kill(recorder.pids()[0], signal.SIGINT)
        return Decision.CONTINUE

    recorder = Recorder([job("a", epochs=3)])
    recorder.decide = decide
    on_local().run(recorder)
    assert recorder.events[-1] == ("finished", "a")


def test_a_worker_that_died_between_two_runs_costs_none(job: MakeJob) -> None:
    supervisor = Supervisor(ENTRY)
    supervisor.begin(job("a"))
    pid = end_of_run(supervisor)["result"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    supervisor.begin(job("b"))
    os.kill(pid, signal.SIGKILL)
    assert end_of_run(supervisor)["result"]["pid"] != pid
    supervisor.close()


def test_what_was_written_is_read_before_silence(job: MakeJob, tmp_path: Path) -> None:
    supervisor = Supervisor(ENTRY, silence=0.5)
    supervisor.begin(job("a", epochs=1))
    until = time.monotonic() + 60
    while "epoch=1/1" not in log_tail(str(tmp_path / "a")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)  # the line is written before the frame
    events = list[str]()
    while len(events) < 2:
        event = supervisor.next(0)
        assert event is not None
        events += [event["kind"]] if event["kind"] != "alive" else []
        time.sleep(0.7)
    supervisor.close()
    assert events == ["started", "report"]


def test_silence_is_counted_while_listening_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 0.5, 100.0, 100.5, 101.0, 201.0, 201.0, 301.0, 302.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    clock = ListeningClock()
    clock.turn()
    assert clock.now == 0.5
    clock.turn()  # as where a whole job of a batch system was suspended
    assert clock.now == 0.5 + TURN
    clock.turn()
    with clock.standing_still(), clock.standing_still():
        pass
    clock.turn()
    assert clock.now == 0.5 + TURN + 0.5 + 0.5 + 1.0


@pytest.mark.parametrize(("counts", "kind"), [((3, 4), "out_of_memory"), ((3, 3), "crashed")])
def test_a_kill_for_want_of_memory_is_told_from_any_other(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int], kind: str
) -> None:
    counted = iter(counts)
    monkeypatch.setattr(supervisor_module, "oom_kills", lambda: next(counted))
    supervisor = Supervisor(ENTRY)
    supervisor.begin(job("a", do="kill"))
    failure = end_of_run(supervisor)["failure"]
    supervisor.close()
    assert (failure["kind"], "was killed by SIGKILL" in failure["message"]) == (kind, True)


def test_memory_that_pytorch_cannot_allocate_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    for error in (caught.value, torch.OutOfMemoryError("CUDA out of memory")):
        assert classify(error)[0] == "out_of_memory"
    assert classify(RuntimeError("shapes differ"))[0] == "crashed"
    assert classify(DownloadFailed("no network"))[0] == "crashed", "it may succeed later"
    assert classify(RequestError("no such model"))[0] == "data"


def test_two_processes_never_work_in_one_folder(
    on_local: MakeEngine, job: MakeJob, tmp_path: Path
) -> None:
    def release(_: Job) -> None:
        if recorder.beats == 2:
            other.release()

    other = Lock(tmp_path / ".locks" / "a.worker")
    recorder = Scripted([job("a")], alive=release)
    on_local().run(recorder)
    assert recorder.beats >= 2
    assert recorder.events[-1] == ("finished", "a")


def test_a_worker_dies_with_its_driver(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from carft_sweep.sweeps.engines.base import Job
from carft_sweep.sweeps.engines.local import LocalEngine
from tests.sweeps.toy_runs import ENTRY, Recorder
place = Path({str(tmp_path)!r})
job = Job("a", "a", {{"do": "sleep", "seconds": 300}}, 0, str(place / "a"))
class Telling(Recorder):
    def started(self, job, worker):
        print(worker.rpartition(":")[2], flush=True)
LocalEngine(ENTRY).run(Telling([job]))
"""
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdout.close()
    assert gone_within(20, worker)


def test_a_user_module_of_the_current_folder_does_not_stand_for_another(
    on_local: MakeEngine, job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "carft_sweep").mkdir()
    for name in ("queue.py", "carft_sweep/__init__.py"):
        (tmp_path / name).write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}")  # the empty part is that folder
    recorder = Recorder([job("a")])
    on_local().run(recorder)
    assert recorder.events[-1] == ("finished", "a")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_log_that_is_no_regular_file_is_neither_written_nor_read(
    on_local: MakeEngine, job: MakeJob, tmp_path: Path, kind: str
) -> None:
    elsewhere, log = tmp_path / "bashrc", tmp_path / "a" / "log.txt"
    log.parent.mkdir()
    elsewhere.write_text("secret\n")
    os.mkfifo(log) if kind == "pipe" else log.symlink_to(elsewhere)
    recorder = Recorder([job("a"), job("b")])
    on_local().run(recorder)
    failure = recorder.failures["a"]
    assert (failure.kind, failure.log_tail) == ("data", "")
    reason = "is a link, which is not followed" if "link" in kind else "is not a regular file"
    assert failure.message == f"{log} {reason}; remove it"
    assert elsewhere.read_text() == "secret\n"
    assert set(recorder.results) == {"b"}


def test_a_label_is_one_line_of_the_log(on_local: MakeEngine, job: MakeJob, tmp_path: Path) -> None:
    label = "contexts=x\ntouch pwned #.txt\x1b[2J"
    on_local().run(Recorder([replace(job("a"), label=label)]))
    text = (tmp_path / "a" / "log.txt").read_text()
    assert r"contexts=x\ntouch pwned #.txt\x1b[2J: process " in text
    assert not any(line.startswith("touch") for line in text.splitlines())


def test_a_run_has_none_of_the_drivers_secrets_and_what_it_needs_itself(
    on_local: MakeEngine, job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_on = {"HF_TOKEN": "t", "HTTPS_PROXY": "http://proxy", "WANDB_API_KEY": "the user's"}
    for name, value in (dict.fromkeys(NAMES, "secret") | passed_on).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:secret@mlflow.lab/x")
    recorder = Recorder([job("a", names=[*NAMES, *passed_on, "MLFLOW_TRACKING_URI"])])
    on_local(ENVIRONMENT, threads=1).run(recorder)
    seen = {name: value for name, value in recorder.results["a"].items() if value is not None}
    assert seen == {**passed_on, "MLFLOW_TRACKING_URI": "https://mlflow.lab/x"}


def test_a_worker_reads_a_secret_that_runs_need_from_its_file(
    on_local: MakeEngine, job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("HF_TOKEN_FILE", str(file))
    recorder = Scripted([job("a"), job("b")], failed=lambda _: file.write_text("t"))
    on_local().run(recorder)
    assert recorder.failures["a"].message.startswith(f"HF_TOKEN_FILE: {file} cannot be read")
    assert recorder.events[-1] == ("finished", "b")
