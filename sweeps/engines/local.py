"""The local engine: runs in one worker process, or in this one for a debugger."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from sweeps.engines.base import POLL, Decision, Engine, Failure, Handler, Job, one_by_one
from sweeps.engines.entry import CORE, classify, run_entry
from sweeps.engines.resources import Hardware, hardware_here
from sweeps.engines.supervisor import ENDS, NODE, SILENCE, Supervisor, dispatch


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
        self._running: threading.Thread | None = None

    @property
    def hardware(self) -> Hardware:
        """See Engine."""
        return hardware_here(self._gpus, self._cpus)

    def run(self, handler: Handler) -> None:
        """See Engine."""
        for job in one_by_one(handler, lambda: self._stopping):
            self._execute(handler, job)

    def stop(self, *, now: bool = False) -> None:
        """See Engine. `now` raises where the run is, in the handler of a signal.

        From another thread it sends that signal; a run outside the main thread, where Python
        handles none, is closed after its epoch.
        """
        self._stopping = True
        if not now or self._running is None:
            return
        if self._running is threading.current_thread():
            raise Interrupted
        if self._running is threading.main_thread() and callable(signal.getsignal(signal.SIGTERM)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

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
            self._running = threading.current_thread()
            result = run_entry(self._entry, vars(job), report)
        except Interrupted:
            handler.stopped(job)
            return
        except Exception as error:  # whatever a run raises is its failure; the sweep goes on
            if broken:  # but that is the handler's, and went through the run only
                raise broken[0] from None
            tail = "".join(traceback.format_exception(error)).rstrip()
            kind, message = classify(error)
            handler.failed(job, Failure(kind, message, tail, NODE))
            return
        finally:
            self._running = None
        if result is None:
            handler.stopped(job)
        else:
            handler.finished(job, result)


class LocalEngine(Engine):
    """One worker process; a dead or silent one costs its run, never the sweep.

    `silence` is how many seconds a worker may show no life, `timeout` how many a run may take
    (None: any), `threads` how many each run computes with (None: as torch decides), `gpus` 0
    hides the machine's.
    """

    def __init__(
        self,
        entry: str = CORE,
        *,
        silence: float = SILENCE,
        timeout: float | None = None,
        threads: int | None = None,
        gpus: float | None = None,
    ) -> None:
        self._supervisor = Supervisor(
            entry, silence=silence, timeout=timeout, threads=threads, gpus=gpus
        )
        self._gpus, self._threads = gpus, threads
        # Plain flags: a signal handler that took a lock could wait for itself.
        self._stopping = False
        self._stopping_now = False

    @property
    def hardware(self) -> Hardware:
        """See Engine."""
        return hardware_here(self._gpus, self._threads)

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
        self._supervisor.close()

    def _execute(self, handler: Handler, job: Job) -> None:
        self._supervisor.begin(job)
        while True:
            event = self._supervisor.next(POLL)
            if self._stopping_now:
                self._supervisor.kill()
                handler.stopped(job)
                return
            if event is None:
                continue
            decision = dispatch(handler, job, event)
            if decision is not None:
                self._supervisor.answer(Decision.STOP if self._stopping else decision)
            elif event["kind"] in ENDS:
                return
