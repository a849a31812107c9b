"""Locks between processes that a crash releases and that a forked child does not inherit."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# POSIX record locks do not conflict within one process: what this one holds is remembered.
_HELD: set[Path] = set()


class Held(RuntimeError):
    """Somebody holds the lock; `pid` is theirs, where it is known."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"{path} is held by process {pid if pid is not None else '(unknown)'}")
        self.pid = pid


class Lock:
    """Held from construction to `release`; raises Held at once when somebody else has it."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        if self._path in _HELD:
            raise Held(path, os.getpid())
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._file, 32).decode(errors="replace").strip()
            os.close(self._file)
            raise Held(path, int(holder) if holder.isdigit() else None) from None
        os.ftruncate(self._file, 0)
        os.write(self._file, str(os.getpid()).encode())
        _HELD.add(self._path)

    def release(self) -> None:
        """Let go. The file stays: to remove it would let two processes lock different files."""
        if self._path in _HELD:
            _HELD.discard(self._path)
            os.close(self._file)


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Hold the lock at `path` for a moment, after whoever has it now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
