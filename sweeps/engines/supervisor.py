"""One worker process: start, send, receive, time out, kill."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import Failure, FailureClass, Handler, Job
from carft_sweep.sweeps.engines.entry import CORE, log_tail
from carft_sweep.sweeps.secrets import of_workers

_ROOT = Path(__file__).parents[3]
_WORKER = "carft_sweep.sweeps.engines.worker"
_CLOSING_SECONDS = 10.0
_CHUNK = 65536


class WorkerDied(RuntimeError):
    """The worker process is gone; `code` is its exit status, negative for a signal."""

    def __init__(self, code: int) -> None:
        self.code = code
        name = next((item.name for item in signal.Signals if item == -code), f"signal {-code}")
        cause = f"was killed by {name}" if code < 0 else f"ended by itself with status {code}"
        super().__init__(f"the worker process {cause}")


class WorkerProcess:
    """One worker, started at once. It dies with the thread that starts it (worker.py)."""

    def __init__(self, entry: str, environ: Mapping[str, str], cwd: str | None = None) -> None:
        # This package comes first, whatever other package is named `sweeps`; an empty part would
        # stand for the folder that one happens to be in.
        others = filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))
        self._process = subprocess.Popen(
            # -P: no file of the folder that one happens to be in stands for a module.
            [sys.executable, "-P", "-m", _WORKER, entry, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Before its first job it prints nothing but what keeps it from starting.
            stderr=None,
            env={**environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *others])},
            cwd=cwd,
            start_new_session=True,  # so that Ctrl-C at the terminal reaches the driver alone
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("the pipes were asked for")
        self._writing = self._process.stdin.fileno()
        self._reading = self._process.stdout.fileno()
        self._buffer = b""

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def send(self, frame: Mapping[str, Any]) -> None:
        """Write one frame. Raises WorkerDied."""
        data = (json.dumps(frame) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._writing, data) :]
        except BrokenPipeError:
            raise WorkerDied(self._process.wait()) from None

    def fileno(self) -> int:
        """Return the descriptor of the worker's pipe, to wait for several workers."""
        return self._reading

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """Return the next frame; None if `timeout` seconds pass. Raises WorkerDied."""
        until = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            remaining = until - time.monotonic()
            ready, _, _ = select.select([self._reading], [], [], max(0.0, remaining))
            if not ready:
                return None
            chunk = os.read(self._reading, _CHUNK)
            if not chunk:
                raise WorkerDied(self._process.wait())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        frame: dict[str, Any] = json.loads(line)
        return frame

    def release(self) -> None:
        """Let the worker end by itself, without waiting."""
        with suppress(WorkerDied):
            self.send({"kind": "close"})

    def close(self) -> None:
        """Wait for the end of a released worker, and kill one that does not end."""
        with suppress(subprocess.TimeoutExpired):  # then it is made to
            self._process.wait(_CLOSING_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the worker, with all processes that it has started."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._process.poll() is None:  # else its number may be another's by now
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


Event = Mapping[str, Any]
ENDS = frozenset({"finished", "stopped", "failed"})
NODE = socket.gethostname()
SILENCE = 60.0
"""Seconds without a sign of life after which a worker is given up."""
TURN = 2.0
"""Seconds that a turn of a loop that listens to workers counts, at most."""
_FRESH_AFTER = frozenset({"crashed", "out_of_memory", "timeout"})
"""Failures after which the process is replaced: its state is doubtful, its memory must be freed."""


class ListeningClock:
    """The seconds in which a loop has listened to its workers: silence is measured by it. A turn of
    the loop counts as TURN seconds at most, so that the clock all but stands still while the
    process was stopped, perhaps with its workers."""

    def __init__(self) -> None:
        self.now = 0.0
        self._last = time.monotonic()

    def turn(self) -> None:
        """Add the time since the last turn of the loop."""
        last, self._last = self._last, time.monotonic()
        self.now += min(self._last - last, TURN)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop the clock within the context, in which no worker is listened to."""
        self.turn()
        before = self.now
        try:
            yield
        finally:
            self.now, self._last = before, time.monotonic()


_KERNEL_COUNTS = Path("/proc/vmstat")


def oom_kills() -> int:
    """Return how many processes the kernel says it killed for lack of memory."""
    try:
        text = _KERNEL_COUNTS.read_text(encoding="utf-8")
    except OSError:
        return 0
    match = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(match[1]) if match else 0


def dispatch(handler: Handler, job: Job, event: Event) -> Decision | None:
    """Call the handler's method for an event; return its decision when the event is a report."""
    match event["kind"]:
        case "started":
            handler.started(job, event["worker"])
        case "alive":
            handler.alive(job)
        case "report":
            return handler.reported(job, event["report"])
        case "finished":
            handler.finished(job, event["result"])
        case "stopped":
            handler.stopped(job)
        case "failed":
            handler.failed(job, Failure(**event["failure"]))
    return None


class Supervisor:
    """Gives jobs to one worker process, which is kept for the next job; its death costs a run only.

    `silence` is how many seconds a worker may show no life, `timeout` how many a run may take
    (None: any), `threads` how many it computes with (None: as torch decides), `devices` the GPUs
    that it sees, as CUDA_VISIBLE_DEVICES names them ("": none; None: those that this process sees).
    `place` begins the names of workers (`local`, `ray:HOST`), `cwd` is where the worker runs, if
    that folder is here.
    """

    def __init__(
        self,
        entry: str = CORE,
        *,
        silence: float = SILENCE,
        timeout: float | None = None,
        threads: int | None = None,
        devices: str | None = None,
        place: str = "local",
        cwd: str | None = None,
    ) -> None:
        self._entry = entry
        self._silence = silence
        self._timeout = timeout
        self._environ: dict[str, str] = {}
        if threads is not None:
            self._environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        if devices is not None:
            self._environ["CUDA_VISIBLE_DEVICES"] = devices
        self._place = place
        self._cwd = cwd if cwd is not None and Path(cwd).is_dir() else None
        self._worker: WorkerProcess | None = None
        self.job: Job | None = None
        """The job of the worker, until the job's end is reported."""
        self._may_be_dead = False
        """Whether the job has not begun, and its process was idle and may have died then."""
        self._began = 0.0  # no job yet: a process that was only started has nothing to end
        self._clock = ListeningClock()
        self._heard = 0.0
        """When the worker last showed life."""
        self._kills_before = 0
        """`oom_kills()` when the worker was given its job."""

    def fileno(self) -> int:
        """Return the pipe's descriptor, readable when `next` may have an event."""
        return self._working().fileno()

    def start(self) -> None:
        """Start the worker process before there is a job, so that no job waits for its imports."""
        if self._worker is None:
            self._worker = self._fresh()

    def begin(self, job: Job) -> None:
        """Start a job. A job that still runs is ended first."""
        if self.job is not None:
            self.kill()
        self._may_be_dead = self._worker is not None
        worker = self._worker or self._fresh()
        self._worker, self.job = worker, job
        self._began = time.monotonic()
        self._clock.turn()
        self._heard = self._clock.now
        self._kills_before = oom_kills()
        with suppress(WorkerDied):  # the next event tells
            worker.send({"kind": "job", **vars(job)})

    def next(self, within: float) -> Event | None:
        """Return the next event of the job; None when nothing happens within the timeout."""
        worker = self._working()
        try:
            frame = worker.receive(within)
        except WorkerDied as died:
            return self._died(died)
        self._clock.turn()
        if frame is not None:  # else the pipe is empty: nothing that it has said is overlooked
            self._heard = self._clock.now
        ended = frame is not None and frame["kind"] in ENDS
        late = None if ended else self._late()
        if late is not None:
            return self._failed("timeout", late)
        if frame is None:
            return None
        if frame["kind"] == "failed":
            return self._failed(frame["failure"], frame["message"], exits=frame.get("exits", False))
        if ended:
            self.job = None
        if frame["kind"] == "started":
            self._may_be_dead = False
            return {**frame, "worker": f"{self._place}:{worker.pid}"}
        return frame

    def answer(self, decision: Decision) -> None:
        """Tell the run that waits after a report to continue or to close."""
        with suppress(WorkerDied):  # the next event tells
            self._working().send({"kind": "decision", "decision": decision.value})

    def kill(self) -> None:
        """Kill the worker process, which ends its job."""
        if self._worker is not None:
            self._worker.kill()
        self._worker = self.job = None

    def release(self) -> None:
        """Let a worker process without a job end, without waiting."""
        if self._worker is not None and self.job is None and self._began:
            self._worker.release()

    def close(self) -> None:
        """End the worker process and wait for its end; a job that still runs is ended."""
        self.release()
        if self._worker is not None and self.job is None and self._began:
            self._worker.close()
            self._worker = None
        self.kill()

    def _fresh(self) -> WorkerProcess:
        environ = of_workers(os.environ) | self._environ
        return WorkerProcess(self._entry, environ, cwd=self._cwd)

    def _working(self) -> WorkerProcess:
        if self._worker is None or self.job is None:
            raise RuntimeError("there is no job to follow")
        return self._worker

    def _died(self, died: WorkerDied) -> Event | None:
        """Return the worker's failure as an event: out of memory if the kernel's OOM killer has
        acted since the job began, else a crash. A job that has not begun gets a new process."""
        if self._may_be_dead and (job := self.job) is not None:
            self.kill()
            self.begin(job)
            return None
        if died.code == -signal.SIGKILL and oom_kills() > self._kills_before:
            return self._failed("out_of_memory", f"{died}: the machine ran out of memory")
        return self._failed("crashed", str(died))

    def _failed(self, kind: FailureClass, message: str, *, exits: bool = False) -> Event:
        tail = "" if self.job is None else log_tail(self.job.workdir)
        if exits or kind in _FRESH_AFTER:  # before the next job could reach it
            self.kill()
        self.job = None
        return {"kind": "failed", "failure": vars(Failure(kind, message, tail, NODE))}

    def _late(self) -> str | None:
        if self._clock.now - self._heard > self._silence:
            return f"the worker showed no life for {self._silence:g} s"
        if self._timeout is not None and time.monotonic() - self._began > self._timeout:
            return f"the run took longer than {self._timeout:g} s"
        return None
