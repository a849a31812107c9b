"""The driver's end of a worker process: frames out, frames in, and whether it still lives."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_CLOSING_SECONDS = 10.0
_CHUNK = 65536


class WorkerDied(RuntimeError):
    """The worker process is gone; `code` is its exit status, negative for a signal."""

    def __init__(self, code: int) -> None:
        self.code = code
        if code < 0:
            try:
                cause = f"was killed by {signal.Signals(-code).name}"
            except ValueError:
                cause = f"was killed by signal {-code}"
        else:
            cause = f"ended by itself with status {code}"
        super().__init__(f"the worker process {cause}")


class WorkerProcess:
    """One worker, started at once. It dies with the thread that starts it (worker.py)."""

    def __init__(self, entry: str, environ: Mapping[str, str], cwd: str | None = None) -> None:
        self._process = subprocess.Popen(
            # -P: no file of the folder that one happens to be in stands for a module.
            [sys.executable, "-P", "-m", "sweeps.engines.worker", entry, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Before its first job it prints nothing but what keeps it from starting.
            stderr=None,
            env={**environ, "PYTHONPATH": _with_this_package(environ.get("PYTHONPATH", ""))},
            cwd=cwd,
            start_new_session=True,  # so that Ctrl-C at the terminal reaches the driver alone
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("the pipes were asked for")
        self._writing = self._process.stdin.fileno()
        self._reading = self._process.stdout.fileno()
        self._buffer = b""
        self.heard = time.monotonic()
        """When it last showed life."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, frame: Mapping[str, Any]) -> None:
        """Write one frame. Raises WorkerDied."""
        data = (json.dumps(frame) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._writing, data) :]
        except BrokenPipeError:
            raise WorkerDied(self._process.wait()) from None

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next frame, None when none comes within `timeout` seconds. Raises WorkerDied."""
        until = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            ready, _, _ = select.select([self._reading], [], [], max(0.0, left))
            if not ready:
                return None
            chunk = os.read(self._reading, _CHUNK)
            if not chunk:
                raise WorkerDied(self._process.wait())
            self._buffer += chunk
            self.heard = time.monotonic()
        line, _, self._buffer = self._buffer.partition(b"\n")
        frame: dict[str, Any] = json.loads(line)
        return frame

    def close(self) -> None:
        """Let it end by itself, then see that it has."""
        try:
            self.send({"kind": "close"})
            self._process.wait(_CLOSING_SECONDS)
        except (WorkerDied, subprocess.TimeoutExpired):
            pass  # it has ended, or it is made to
        self.kill()

    def kill(self) -> None:
        """End it now, with whatever it has started itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._process.poll() is None:  # else its number may be another's by now
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _with_this_package(path: str) -> str:
    """The search path with this very package first, whatever else is named `sweeps`."""
    # An empty part would stand for the folder that one happens to be in.
    return os.pathsep.join([str(_ROOT), *filter(None, path.split(os.pathsep))])
