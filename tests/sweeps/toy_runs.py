"""Toy runs for engines: entries that do what their config says, and a handler that writes down."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.errors import NonFinite, RequestError
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import Failure, Job, Wait
from carft_sweep.sweeps.engines.entry import Report

ENTRY = "tests.sweeps.toy_runs:act"
REPLAY = "tests.sweeps.toy_runs:replay"
ENVIRONMENT = "tests.sweeps.toy_runs:environment"


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def epoch_report(epoch: int, epochs: int) -> dict[str, Any]:
    """As `EpochReport.as_dict` gives it."""
    steps = {"epoch": epoch, "epochs": epochs, "step": epoch, "steps": epochs}
    metrics = {"train/loss": 1.0 / (1 + epoch), "id/val/top1": epoch / (1 + epochs)}
    return {**steps, "metrics": metrics, "seconds": 0.01, "timestamp": 1_700_000_000_000 + epoch}


def replay(
    config: Mapping[str, Any], seed: int, *, report: Report, **_: Any
) -> dict[str, Any] | None:
    """Report the validation accuracies of a recorded run, one an epoch."""
    values = config["values"]
    for epoch, value in enumerate(values, start=1):
        record = epoch_report(epoch, len(values))
        record["metrics"]["id/val/top1"] = value
        if report(record) is Decision.STOP and epoch < len(values):
            return None
    return {"pid": os.getpid(), "seed": seed, "warnings": []}


def environment(config: Mapping[str, Any], seed: int, **_: Any) -> dict[str, Any]:
    """Tell what the environment says of resources, or of `config["names"]`; and whether torch was
    loaded before it did.
    """
    del seed
    assert "torch" not in sys.modules
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")
    return {name: os.environ.get(name) for name in config.get("names", names)}


def act(
    config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
) -> Mapping[str, Any] | None:
    """Report `config["epochs"]` epochs, then do what `config["do"]` says."""
    epochs = config.get("epochs", 2)
    for epoch in range(1, epochs + 1):
        if report(epoch_report(epoch, epochs)) is Decision.STOP:
            return None
        time.sleep(config.get("pause", 0))
    match config.get("do"):
        case "raise":
            raise {
                "nan": NonFinite("train/loss is nan in epoch 3"),
                "memory": OutOfMemoryError("tried to allocate 3 GiB"),
                "host memory": MemoryError(),
                "request": RequestError("data.root: there is no folder x"),
                "image": RequestError("a.png cannot be read as an image (it is cut off)"),
                "key": KeyError("weights"),
            }[config["error"]]
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(config["seconds"])
        case "wait":
            while not (workdir.parent / "go").exists():
                time.sleep(0.05)
        case "print":
            sys.stdout.write("to stdout\n")
            os.write(1, b'{"kind": "finished", "result": {"forged": 1}}\n')
            os.write(2, b"to stderr\n")
    return {"pid": os.getpid(), "seed": seed, "workdir": str(workdir), "warnings": []}


class Recorder:
    """A handler that gives out jobs in order and writes down what it is told."""

    def __init__(self, jobs: list[Job | Wait]) -> None:
        self.jobs = jobs
        self.queued = [job.digest for job in jobs if isinstance(job, Job)]
        self.events: list[tuple[str, str]] = []
        self.results: dict[str, Mapping[str, Any]] = {}
        self.failures: dict[str, Failure] = {}
        self.workers: list[str] = []
        self.beats = 0
        self.decide: Callable[[Job, Mapping[str, Any]], Decision] = lambda *_: Decision.CONTINUE

    def next_job(self) -> Job | Wait:
        return self.jobs.pop(0) if self.jobs else Wait.NEVER

    def usable(self, nodes: Collection[str]) -> Collection[str]:
        return nodes

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

    def failed(self, job: Job, failure: Failure) -> None:
        self.events.append(("failed", job.digest))
        self.failures[job.digest] = failure

    def pids(self) -> list[int]:
        """Of the worker process of each run, in the order in which they began."""
        return [int(worker.rpartition(":")[2]) for worker in self.workers]


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone_within(seconds: float, pid: int) -> bool:
    until = time.monotonic() + seconds
    while is_running(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
