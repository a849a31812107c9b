"""The local engine: runs in worker processes, or in this one for a debugger."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import POLL, Engine, Failure, Handler, Job, Wait
from carft_sweep.sweeps.engines.entry import CORE, classify, run_entry
from carft_sweep.sweeps.engines.resources import Hardware, hardware_here
from carft_sweep.sweeps.engines.supervisor import NODE, SILENCE, Supervisor, dispatch

PEAK = "system/peak_memory_mb"
"""The metric of a report for the MiB that its run has taken so far."""
logger = logging.getLogger(__name__)


class Interrupted(BaseException):
    """The run is to be closed at once; not an Exception, so that no run can hold it up."""


class InProcessEngine(Engine):
    """Runs jobs one by one in this process: they print to the terminal, `breakpoint()` works."""

    def __init__(
        self, entry: str = CORE, *, gpus: float | None = None, cpus: int | None = None
    ) -> None:
        """Prepare to run jobs, each on `gpus` GPUs and `cpus` cores of this machine (None: all)."""
        self._entry = entry
        self._gpus, self._cpus = gpus, cpus
        self._running: threading.Thread | None = None

    @property
    def hardware(self) -> Hardware:
        """Implement `Engine.hardware`."""
        return hardware_here(self._gpus, self._cpus)

    def run(self, handler: Handler) -> None:
        """Implement `Engine.run`."""
        while not self.is_stopping:
            job = handler.next_job()
            if job is Wait.NEVER:
                return
            if isinstance(job, Wait):
                time.sleep(POLL)
            else:
                self._execute(handler, job)

    def stop(self, *, now: bool = False) -> None:
        """Stop the run after its epoch, or `now` by an exception in the run. Another thread sends
        the main thread a signal, whose handler raises it; a run outside the main thread, where
        Python handles no signals, is closed after its epoch in any case."""
        super().stop()
        if not now or self._running is None:
            return
        if self._running is threading.current_thread():
            raise Interrupted
        if self._running is threading.main_thread() and callable(signal.getsignal(signal.SIGTERM)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

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
            return Decision.STOP if self.is_stopping else decision

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


class SharedMemory:
    """How many runs fit at once into the memory that they share, by the largest run so far.

    `sizes` are the MiB that runs may take together, by the `devices` of the workers that share a
    memory; devices that are not in it are unlimited. `needs` computes the MiB of a run from its
    config before it begins, or None. Until a size is known one run has the memory alone.
    """

    def __init__(
        self,
        sizes: Mapping[str | None, float],
        needs: Callable[[Mapping[str, Any]], float | None] = lambda _: None,
    ) -> None:
        self._sizes, self.needs = sizes, needs
        self._peak = 0.0
        self._most: dict[str | None, int] = {}
        """By devices the most runs at once, where more have run out of memory."""

    def holds(self, devices: str | None) -> float:
        """Return how many runs fit at once on these devices; inf where nothing limits them."""
        size = self._sizes.get(devices)
        if size is None:
            return math.inf
        fits = max(1, int(size / self._peak)) if self._peak else 1
        return min(fits, self._most.get(devices, fits))

    def learn(self, peak: float | None) -> None:
        """Record how many MiB a run takes, as computed or as its epoch reports."""
        if peak is not None and peak > self._peak:
            self._peak = peak
            fits = {name or "memory": self.holds(name) for name in self._sizes}
            logger.debug("a run takes %.0f MiB: at once fit %s", peak, fits)

    def narrow(self, devices: str | None, runs: int) -> bool:
        """Reduce how many runs share the memory of these devices, after an out-of-memory failure of
        one of `runs`; return False if they are unlimited, or a single run had all the memory."""
        if self._sizes.get(devices) is None or runs == 1:
            return False
        self._most[devices] = min(runs - 1, self._most.get(devices, runs))
        return True


class LocalEngine(Engine):
    """Worker processes on this machine; a dead or silent one costs its run, never the sweep.

    `devices` has an entry for each worker: the GPUs that it sees, as CUDA_VISIBLE_DEVICES names
    them ("": none; None: those that this process sees). Each worker executes a run, as far as
    `memory` (None: unlimited) holds them. `silence` is how many seconds a worker may show no life,
    `timeout` how many a run may take (None: any), `threads` how many each run computes with (None:
    as torch decides).
    """

    def __init__(
        self,
        entry: str = CORE,
        *,
        devices: Sequence[str | None] = (None,),
        memory: SharedMemory | None = None,
        silence: float = SILENCE,
        timeout: float | None = None,
        threads: int | None = None,
    ) -> None:
        self._workers = {
            Supervisor(entry, silence=silence, timeout=timeout, threads=threads, devices=seen): seen
            for seen in devices
        }
        self._memory = SharedMemory({}) if memory is None else memory
        self._threads = threads

    @property
    def hardware(self) -> Hardware:
        """Implement `Engine.hardware`."""
        devices = next(iter(self._workers.values()))
        gpus = None if devices is None else len([name for name in devices.split(",") if name])
        return hardware_here(gpus, self._threads)

    def start(self) -> None:
        """Implement `Engine.start`."""
        counts = Counter[str | None]()
        for worker, devices in self._workers.items():
            # One more than fits as long as nothing is known: then there is mostly room for it.
            if counts[devices] <= self._memory.holds(devices):
                worker.start()
                counts[devices] += 1

    def run(self, handler: Handler) -> None:
        """Implement `Engine.run`."""
        ask_again = 0.0
        while True:
            job: Job | Wait = Wait.LATER
            while not self.is_stopping and time.monotonic() >= ask_again:
                worker = self._free()
                if worker is None:
                    break
                job = handler.next_job()
                if isinstance(job, Wait):
                    ask_again = time.monotonic() + POLL
                    break
                self._memory.learn(self._memory.needs(job.config))
                worker.begin(job)
            busy = self._busy()
            if not busy:
                if self.is_stopping or job is Wait.NEVER:
                    return
                time.sleep(POLL)
                continue
            wait([worker.fileno() for worker in busy], POLL)
            for worker in busy:
                self._follow(handler, worker)
                if worker.job is None:  # what waited for its end may begin
                    ask_again = 0.0

    def close(self) -> None:
        """Implement `Engine.close`."""
        for worker in self._workers:
            worker.release()  # they end side by side
        for worker in self._workers:
            worker.close()

    def _busy(self) -> list[Supervisor]:
        return [worker for worker in self._workers if worker.job is not None]

    def _free(self) -> Supervisor | None:
        """Return an idle worker that may get a run; None without one."""
        running = Counter(self._workers[worker] for worker in self._busy())
        for worker, devices in self._workers.items():
            if worker.job is None and running[devices] < self._memory.holds(devices):
                return worker
        return None

    def _follow(self, handler: Handler, worker: Supervisor) -> None:
        """Pass a worker's next event on to the handler."""
        while (job := worker.job) is not None:
            event = worker.next(0)
            if self.is_stopping_now:
                worker.kill()
                handler.stopped(job)
                return
            if event is None:
                return
            if event["kind"] == "failed":
                event = {"kind": "failed", "failure": self._narrowed(worker, event["failure"])}
            decision = dispatch(handler, job, event)
            if decision is not None:
                self._memory.learn(event["report"]["metrics"].get(PEAK))
                worker.answer(Decision.STOP if self.is_stopping else decision)

    def _narrowed(self, worker: Supervisor, failure: dict[str, Any]) -> dict[str, Any]:
        """Make fewer runs share the memory after an out-of-memory failure, and return the failure,
        with their number in its message; return other failures unchanged."""
        devices = self._workers[worker]
        runs = 1 + sum(self._workers[other] == devices for other in self._busy())
        if failure["kind"] != "out_of_memory" or not self._memory.narrow(devices, runs):
            return failure
        message = f"{failure['message']}; at most {runs - 1} at once from now on"
        return {**failure, "message": message, "narrowed": True}
