"""The worker process of an engine: takes jobs from a pipe, keeps model and data warm.

Run as `python -m carft_sweep.sweeps.engines.worker ENTRY DRIVER_PID`. Frames are lines of
JSON, on copies of stdin and stdout that nothing else knows; what a run prints goes to its log.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import FailureClass
from carft_sweep.sweeps.engines.entry import classify, load_entry, open_log, run_entry
from carft_sweep.sweeps.engines.ranks import count_ranks, die_with, forget_torchrun, started_ranks
from carft_sweep.sweeps.secrets import WORKERS, read_secret_files
from carft_sweep.tracking.location import waiting

BEAT = 2.0
"""Seconds between two signs of life."""


class Channel:
    """The worker's end of the pipes to its driver. Ends the process when the driver is gone."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._lock = threading.Lock()
        self._inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, kind: str, **fields: Any) -> None:
        """Write a frame; any thread may. Ends this process where the supervisor is gone."""
        frame = (json.dumps({"kind": kind, **fields}) + "\n").encode()
        with self._lock:
            try:
                while frame:
                    frame = frame[os.write(self._writing, frame) :]
            except BrokenPipeError:
                os._exit(1)

    def receive(self) -> dict[str, Any]:
        """Return the next frame, after waiting for it."""
        return self._inbox.get()

    def beat(self) -> None:
        """Send signs of life until the process ends."""

        def beating() -> None:
            while True:
                self.send("alive")
                time.sleep(BEAT)

        threading.Thread(target=beating, daemon=True).start()

    def _read(self) -> None:
        with os.fdopen(self._reading, "rb") as pipe:
            for line in pipe:
                self._inbox.put(json.loads(line))
        os._exit(1)  # The driver is gone: nobody would ever collect the result.


def main(arguments: list[str]) -> int:
    """Serve a driver's jobs until it sends `close`; return the exit code."""
    entry, driver = arguments[0], int(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to decide on.
    die_with(driver)
    forget_torchrun()
    channel = Channel(os.dup(0), os.dup(1))
    with open(os.devnull, "r+b") as nothing:  # noqa: PTH123 - descriptors, not a path's content
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    channel.beat()
    _import_entry(entry)
    while (frame := channel.receive())["kind"] != "close":
        _serve(channel, entry, frame)
    return 0


def _import_entry(name: str) -> None:
    """Import the modules of future jobs while the worker is idle. Output of imports belongs to no
    run and is discarded. An import that fails will fail again in a job, whose log shows it."""
    terminal = os.dup(2)
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a descriptor, not a path's content
        os.dup2(nothing.fileno(), 2)
    try:
        with suppress(Exception):
            load_entry(name)
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _serve(channel: Channel, entry: str, job: Mapping[str, Any]) -> None:
    workdir = Path(job["workdir"])
    try:
        _print_to(workdir)
    except (OSError, RequestError) as error:
        kind, message = classify(error)
        channel.send("failed", failure=kind, message=message)
        return
    _log(f"{job['label']}: process {os.getpid()} begins")
    channel.send("started")

    def report(epoch: Mapping[str, Any]) -> Decision:
        metrics = " ".join(f"{name}={value:.6g}" for name, value in epoch["metrics"].items())
        _log(f"epoch={epoch['epoch']}/{epoch['epochs']} {metrics}")
        channel.send("report", report=dict(epoch))
        return Decision(channel.receive()["decision"])

    def end(kind: FailureClass, message: str) -> None:
        channel.send("failed", failure=kind, message=message, exits=True)
        os._exit(1)

    ranks = 1
    try:
        read_secret_files(names=WORKERS)
        ranks = count_ranks(job["config"])
        # A worker whose driver was killed may still live, and would overwrite this run's files.
        with (
            waiting(workdir.parent / ".locks" / f"{workdir.name}.worker"),
            started_ranks(entry, job, ranks, end),
        ):
            result = run_entry(entry, job, report)
    except Exception as error:  # whatever a run raises is its failure; the sweep goes on
        traceback.print_exc()
        sys.stderr.flush()
        kind, message = classify(error)
        if ranks > 1:
            end(kind, message)
        channel.send("failed", failure=kind, message=message)
        return
    _log("stopped" if result is None else "done")
    sys.stdout.flush()
    if result is None:
        channel.send("stopped")
    else:
        channel.send("finished", result=dict(result))


def _log(text: str) -> None:
    # One line, whatever a label holds. `printable` would load rich, which no run needs.
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
    sys.stderr.flush()


def _print_to(workdir: Path) -> None:
    """Redirect output of Python and every library to the log of the run."""
    sys.stdout.flush()
    sys.stderr.flush()
    workdir.mkdir(parents=True, exist_ok=True)
    log = open_log(workdir, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
