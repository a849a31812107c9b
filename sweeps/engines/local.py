"""Runs executed one after another in a warm worker process that the driver supervises."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from sweeps.engines.base import POLL, Decision, Engine, Failure, Handler, Job, one_by_one
from sweeps.engines.process import WorkerDied, WorkerProcess
from sweeps.engines.training import CORE, log_tail

_FRESH_AFTER = frozenset({"crashed", "out_of_memory"})
"""Failures after which the process is not trusted any more."""


class LocalEngine(Engine):
    """One worker process; a dead or silent one costs its run, never the sweep.

    `silence` is how many seconds a worker may show no life, `timeout` how many a run may take
    (None: any), `threads` how many each run computes with (None: as torch decides).
    """

    def __init__(
        self,
        entry: str = CORE,
        *,
        silence: float = 60.0,
        timeout: float | None = None,
        threads: int | None = None,
    ) -> None:
        self._entry = entry
        self._silence = silence
        self._timeout = timeout
        self._threads = threads
        self._worker: WorkerProcess | None = None
        # Plain flags: a signal handler that took a lock could wait for itself.
        self._stopping = False
        self._stopping_now = False

    def run(self, handler: Handler) -> None:
        """See Engine."""
        for job in one_by_one(handler, lambda: self._stopping):
            self._execute(handler, job)

    def stop(self, *, now: bool = False) -> None:
        """See Engine."""
        self._stopping = True
        self._stopping_now = self._stopping_now or now

    def close(self) -> None:
        """See Engine."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _execute(self, handler: Handler, job: Job) -> None:
        worker = self._worker = self._worker or WorkerProcess(self._entry, self._environ())
        try:
            worker.send(
                {
                    "kind": "job",
                    "label": job.label,
                    "config": dict(job.config),
                    "seed": job.seed,
                    "workdir": str(job.workdir),
                    "cache": str(job.cache),
                }
            )
            failure = self._supervise(handler, job, worker)
        except WorkerDied as died:
            failure = Failure("crashed", str(died))
        if failure is None:
            return
        if failure.kind in _FRESH_AFTER or failure.kind == "timeout":
            worker.kill()
            self._worker = None
        tail = log_tail(job.workdir)
        handler.failed(job, Failure(failure.kind, failure.message, tail))

    def _supervise(self, handler: Handler, job: Job, worker: WorkerProcess) -> Failure | None:
        """Follow one job to its end; the failure, if that is its end. Raises WorkerDied."""
        began = worker.heard = time.monotonic()
        while True:
            frame = worker.receive(POLL)
            if self._stopping_now:
                worker.kill()
                self._worker = None
                handler.stopped(job)
                return None
            if frame is None:
                late = self._late(worker, began)
                if late is not None:
                    return late
            elif self._is_over(handler, job, worker, frame):
                return _failure(frame)

    def _is_over(
        self, handler: Handler, job: Job, worker: WorkerProcess, frame: Mapping[str, Any]
    ) -> bool:
        match frame["kind"]:
            case "started":
                handler.started(job, worker.name)
            case "alive":
                handler.alive(job)
            case "report":
                decision = handler.reported(job, frame["report"])
                decision = Decision.STOP if self._stopping else decision
                worker.send({"kind": "decision", "decision": decision.value})
            case "finished":
                handler.finished(job, frame["result"])
                return True
            case "stopped":
                handler.stopped(job)
                return True
            case "failed":
                return True
        return False

    def _late(self, worker: WorkerProcess, began: float) -> Failure | None:
        now = time.monotonic()
        if now - worker.heard > self._silence:
            return Failure("timeout", f"the worker showed no life for {self._silence:g} s")
        if self._timeout is not None and now - began > self._timeout:
            return Failure("timeout", f"the run took longer than {self._timeout:g} s")
        return None

    def _environ(self) -> dict[str, str]:
        environ = dict(os.environ)
        if self._threads is not None:
            environ |= {
                "OMP_NUM_THREADS": str(self._threads),
                "MKL_NUM_THREADS": str(self._threads),
            }
        return environ


def _failure(frame: Mapping[str, Any]) -> Failure | None:
    """The failure that the worker tells of, if it does."""
    if frame["kind"] != "failed":
        return None
    return Failure(frame["failure"], frame["message"])
