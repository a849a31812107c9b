"""Servers as child processes: started on a free port, waited for, ended with all their children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

HOST = "127.0.0.1"
_PATIENCE = 60.0


class Service(ABC):
    """A server that a test may take away and bring back."""

    @abstractmethod
    def start(self) -> None:
        """Serve, and wait until it answers."""

    @abstractmethod
    def stop(self) -> None:
        """End it; what it keeps stays."""

    @contextmanager
    def away(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()


def free_port() -> int:
    """A port that the kernel chose and nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def start(
    command: Sequence[str],
    log: Path,
    answers: Callable[[], bool],
    *,
    environ: Mapping[str, str] | None = None,
    user: str | None = None,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server and wait until it answers. Raises RuntimeError, with its log, if it ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environ is None else dict(environ),
            cwd=folder,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            start_new_session=True,
        )
    last = time.monotonic() + _PATIENCE
    while not answers():
        if process.poll() is not None or time.monotonic() > last:
            end(process)
            raise RuntimeError(f"{command[0]} does not serve:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
    return process


def until(
    is_true: Callable[[], object], message: Callable[[], str] = str, *, seconds: float = 120
) -> None:
    """Wait until it is true; fail with the message where that takes too long."""
    last = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < last, message()
        time.sleep(0.05)


def running(words: bytes, variable: bytes = b"") -> list[int]:
    """The processes with these words in their command and this in their environment (Linux)."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            has_words = words in (folder / "cmdline").read_bytes()
            if has_words and variable in (folder / "environ").read_bytes():
                pids.append(int(folder.name))
    return pids


def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a server together with its children, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait(_PATIENCE)


def environment(**variables: str) -> dict[str, str]:
    """That of this process, without what would let coverage measure other people's servers."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return {**known, **variables}


def ended(
    *words: str | Path,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    limit: float = 120,
    stderr: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """A command at its end: its exit code and output; `stderr` may be subprocess.STDOUT."""
    return subprocess.run(
        words,
        env=environ,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=limit,
    )
