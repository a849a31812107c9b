"""A sweep whose runs are simulated, and whose driver's way to MLflow's server is the real one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load_watch import Watch
from benchmarks.slow_server import CONTROL
from carft_sweep.carft_core.files import write_json
from carft_sweep.sweeps.engines.resources import Hardware
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.trials import Ledger
from carft_sweep.sweeps.plan.tasks import PlannedRun, Planner, setting_record
from carft_sweep.sweeps.results.projection import SweepProjection
from carft_sweep.sweeps.results.projection_thread import Projector
from carft_sweep.sweeps.spec.spec import load_spec
from carft_sweep.tracking.store.base import RunKey, Tracker
from carft_sweep.tracking.store.mlflow_store import open_store

NAME = "load"
POINT = {"algorithm.kl_weight": 0.3}
METRICS = (
    *("train/loss", "train/cross_entropy", "train/kl", "id/val/top1", "id/val/nll", "id/val/ece"),
    *("id/val/brier", "train/lr", "system/images_per_s", "system/peak_memory_mb"),
)
EPOCHS = 10_000
"""Of a run; more than it ever reports here."""
PROBED = 3


@dataclass
class Reports:
    """The simulated runs: what they have reported, to be compared with what the server has."""

    tasks: Sequence[PlannedRun]
    runs: RunStore
    projection: SweepProjection
    thread: Projector
    drawn_s: float = 0.0
    telling_s: float = 0.0
    late_s: float = 0.0
    timestamps: list[list[int]] = field(default_factory=list)
    histories: list[list[dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timestamps = [[] for _ in self.tasks]
        self.histories = [[] for _ in self.tasks]

    def tell(self, seconds: float) -> None:
        """Each run reports once a second, one after another within the second."""
        count = len(self.tasks)
        began = time.monotonic()
        for number in range(int(seconds * count)):
            due = began + number / count
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            self.late_s = max(self.late_s, time.monotonic() - due)
            self._report(number % count)

    def _report(self, run: int) -> None:
        before = time.thread_time()
        step, now = len(self.timestamps[run]) + 1, time.time_ns() // 1_000_000
        self.timestamps[run].append(now)
        metrics = {name: value(run, name, step) for name in METRICS}
        counts = {"epoch": step, "epochs": EPOCHS, "step": step, "steps": EPOCHS}
        times = {"timestamp": now, "seconds": float(step)}
        self.histories[run].append({**counts, **times, "metrics": metrics})
        digest = self.tasks[run].digest
        # Not durable, as the workers do it: that is their cost, on other machines.
        (self.runs.folder(digest) / "history.new").write_text(json.dumps(self.histories[run]))
        (self.runs.folder(digest) / "history.new").rename(self.runs.folder(digest) / "history.json")
        drawn = time.thread_time()
        self.projection.note(digest)
        self.thread.wake()
        self.drawn_s += drawn - before
        self.telling_s += time.thread_time() - drawn


def value(run: int, name: str, step: int) -> float:
    """What a run has measured: another number at each point."""
    return (hash((run, step)) % 100_003 + METRICS.index(name)) / 100_003


def measure(
    address: str,
    home: Path,
    *,
    runs: int,
    seconds: float,
    trouble: Mapping[str, float],
    recovery: float,
    patience: float,
    session: int | None = None,
) -> dict[str, Any]:
    """One sweep from its first run's opening to the last point's arrival, and what it cost.

    The processes of `session` are the server's.
    """
    with ExitStack() as stack:
        proxy = stack.enter_context(front(address))
        os.environ["MLFLOW_TRACKING_URI"] = proxy
        store = open_store(home)
        stack.callback(store.close)
        reports = _reports(home, runs, store)
        stack.callback(lambda: reports.thread.close(5.0))
        opened = _open(reports, patience)
        control(proxy)  # the counts of the openings are not those of the reports
        look = stack.enter_context(_probe(address, reports.tasks, store))
        watch = Watch(lambda: len(reports.projection.pending), session)
        control(proxy, trouble)
        reports.tell(seconds)
        watch.stop()
        steady = control(proxy, {"delay": 0, "busy_every": 0})
        began = time.monotonic()
        waiting = len(reports.projection.pending)
        if recovery:
            reports.tell(recovery)
        recovering = len(reports.projection.pending)
        for task in reports.tasks:
            reports.runs.release(task.digest, "stopped")
        reports.projection.end_driver()
        reports.thread.wake()
        if not reports.thread.flush(patience):
            raise SystemExit(f"not everything was sent: {reports.thread.last_error}")
        drained = time.monotonic() - began - recovery
        lags = look()
        wrong = _wrong_points(address, reports, store)
    cpu = watch.cpu_s - reports.drawn_s * seconds / (seconds + recovery)
    return {
        "runs": runs,
        "seconds": seconds,
        "opening, s": round(opened, 1),
        "driver, share of a core": round(cpu / seconds, 3),
        "of that telling": round(reports.telling_s / (seconds + recovery), 3),
        "server, share of a core": None if session is None else round(watch.server_s / seconds, 2),
        "a report came late by at most, s": round(reports.late_s, 2),
        "requests/s": round(steady["requests"] / seconds, 1),
        "refused": steady["refused"],
        "points told/s": len(METRICS) * runs,
        "points/batch": round(steady["points"] / max(1, steady["batches"]), 1),
        "most points in a batch": steady["most_points"],
        "runs with news, at most": watch.most_waiting,
        "runs with news at the end of it": waiting,
        "runs with news when it had been quick for a while": recovering if recovery else None,
        "threads": watch.threads,
        "memory grew by, MB": round(watch.grown_mb),
        "lag, s": lags,
        "all delivered after, s": round(drained, 1),
        "points": sum(len(told) for told in reports.timestamps) * len(METRICS),
        "wrong points": wrong,
    }


def _reports(home: Path, runs: int, store: Tracker) -> Reports:
    place = Home(home)
    file = place.sweep(NAME) / "sweep.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    sweep = {
        "name": NAME,
        "parameters": {name: {"values": [value]} for name, value in POINT.items()},
        "seeds": list(range(runs)),
        "baselines": [],
        "trial": {"algorithm": {"name": "car_ft"}, "device": "cpu"},
    }
    file.write_text(json.dumps(sweep))
    spec = load_spec(file)
    tasks = Planner(spec, Hardware(1)).trial(POINT, 0)
    ledger = Ledger.create(place.sweep(NAME), 1, json.loads(json.dumps(spec.as_dict())), {"at": 0})
    ledger.propose(0, setting_record(tasks))
    folders = RunStore(place.runs)
    for task in tasks:
        folders.acquire(task.digest, task.label, NAME)
        claimed = {"digest": task.digest, "seed": task.seed or 0}
        parts = {"identity": dict(task.identity.parts), "config": task.config.as_dict()}
        write_json(folders.folder(task.digest) / "config.json", {**claimed, **parts})
    projection = SweepProjection(place, ledger, store, owner=folders.owner)
    return Reports(tasks, folders, projection, Projector("tracking", projection.update))


def _open(reports: Reports, patience: float) -> float:
    began = time.monotonic()
    if not reports.thread.flush(patience):
        raise SystemExit(f"runs cannot be opened: {reports.thread.last_error}")
    return time.monotonic() - began


@contextmanager
def front(address: str) -> Iterator[str]:
    """Start a slow server in front of one that has this address; its own address."""
    command = [sys.executable, "-m", "benchmarks.slow_server", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def control(proxy: str, change: Mapping[str, float | str] | None = None) -> dict[str, int]:
    """Change how a slow server answers; what has passed since the last call."""
    body = json.dumps(change).encode() if change else None
    with urllib.request.urlopen(f"{proxy}{CONTROL}", data=body, timeout=60) as answer:
        counts: dict[str, int] = json.load(answer)
        return counts


@contextmanager
def _probe(address: str, tasks: Sequence[PlannedRun], store: Tracker) -> Iterator[Any]:
    """Within, another process looks at a few runs; what is given ends it and tells the lags."""
    chosen = [tasks[i * (len(tasks) - 1) // max(1, PROBED - 1)] for i in range(PROBED)]
    ids = [str(store.run_id(_key(task))) for task in chosen]
    command = [sys.executable, "-m", "benchmarks.lag_probe", address, METRICS[0], *ids]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def look() -> dict[str, float]:
            lags = json.loads(process.communicate(timeout=60)[0])
            p95 = statistics.quantiles(lags, n=20, method="inclusive")[-1]
            found = {"median": statistics.median(lags), "p95": p95, "max": max(lags)}
            return {name: round(lag, 2) for name, lag in found.items()}

        try:
            yield look
        finally:
            process.kill()


def _wrong_points(address: str, reports: Reports, store: Tracker) -> int:
    """How many points the server lacks, has twice, or has otherwise than they were told."""
    from mlflow import MlflowClient

    client, wrong = MlflowClient(address), 0
    for run, task in enumerate(reports.tasks):
        run_id = str(store.run_id(_key(task)))
        for name in METRICS:
            there = [
                (point.step, point.timestamp, point.value)
                for point in client.get_metric_history(run_id, name)
            ]
            told = [
                (step, at, value(run, name, step))
                for step, at in enumerate(reports.timestamps[run], start=1)
            ]
            wrong += len(set(there) ^ set(told)) + len(there) - len(set(there))
    return wrong


def _key(task: PlannedRun) -> RunKey:
    return RunKey(NAME, task.digest)
