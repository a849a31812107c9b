"""Runs executed one after another in a warm worker process that the driver supervises."""

from __future__ import annotations

from sweeps.engines.base import POLL, Decision, Engine, Handler, Job, one_by_one
from sweeps.engines.supervision import ENDS, SILENCE, Supervisor, environ_for, plain, tell
from sweeps.engines.training import CORE
from sweeps.hardware import Hardware, hardware_here


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
            entry, silence=silence, timeout=timeout, environ=environ_for(threads, gpus)
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
        self._supervisor.begin(plain(job))
        while True:
            event = self._supervisor.next(POLL)
            if self._stopping_now:
                self._supervisor.kill()
                handler.stopped(job)
                return
            if event is None:
                continue
            decision = tell(handler, job, event)
            if decision is not None:
                self._supervisor.answer(Decision.STOP if self._stopping else decision)
            elif event["kind"] in ENDS:
                return
