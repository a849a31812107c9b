"""Runs executed in the driver's own process, for a debugger: same contract, no supervision."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from sweeps.engines.base import Decision, Engine, Failure, Handler, Job, one_by_one
from sweeps.engines.supervision import NODE, plain
from sweeps.engines.training import CORE, failure_class, one_line, run_entry
from sweeps.hardware import Hardware, hardware_here


class Interrupted(BaseException):
    """The run is to be closed at once; not an Exception, so that no run can hold it up."""


class InProcessEngine(Engine):
    """What a run prints stays on the terminal, and `breakpoint()` in it works."""

    def __init__(
        self, entry: str = CORE, *, gpus: float | None = None, cpus: int | None = None
    ) -> None:
        """`gpus` 0: runs leave the machine's alone."""
        self._entry = entry
        self._gpus, self._cpus = gpus, cpus
        self._stopping = False
        self._running = False

    @property
    def hardware(self) -> Hardware:
        """See Engine."""
        return hardware_here(self._gpus, self._cpus)

    def run(self, handler: Handler) -> None:
        """See Engine."""
        for job in one_by_one(handler, lambda: self._stopping):
            self._execute(handler, job)

    def stop(self, *, now: bool = False) -> None:
        """See Engine. `now` raises where the run is, when the caller is a signal handler."""
        self._stopping = True
        if now and self._running:
            raise Interrupted

    def close(self) -> None:
        """Nothing to let go of."""

    def _execute(self, handler: Handler, job: Job) -> None:
        handler.started(job, "in process")
        broken: list[Exception] = []

        def report(epoch: Mapping[str, Any]) -> Decision:
            try:
                handler.alive(job)
                decision = handler.reported(job, epoch)
            except Exception as error:
                broken.append(error)
                raise
            return Decision.STOP if self._stopping else decision

        try:
            self._running = True
            result = run_entry(self._entry, plain(job), report)
        except Interrupted:
            handler.stopped(job)
            return
        except Exception as error:  # whatever a run raises is its failure; the sweep goes on
            if broken:  # but that is the handler's, and went through the run only
                raise broken[0] from None
            tail = "".join(traceback.format_exception(error)).rstrip()
            failure = Failure(failure_class(error), one_line(error), tail, NODE)
            handler.failed(job, failure)
            return
        finally:
            self._running = False
        if result is None:
            handler.stopped(job)
        else:
            handler.finished(job, result)
