"""The Optuna studies of a home as a journal file, for file systems where SQLite is not safe."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from carft_core.errors import RequestError

if TYPE_CHECKING:
    pass


GRACE_SECONDS = 60
"""A lock that old was left by a process that was killed. Less would take it from one that waits
for a server that is away; a driver on another host must wait that long anyway."""
_BEGINS = b'{"op_code":'
_BLOCK = 4096


def open_journal(file: Path) -> JournalStorage:
    """The studies in `file`, created when missing.

    Raises RequestError when it is another's, or broken before its end.
    """
    _check_head(file)
    name = str(file.absolute())
    try:
        return JournalStorage(_Backend(name, _Lock(name, GRACE_SECONDS)))
    except (ValueError, LookupError) as error:
        raise RequestError(
            f"{file} is a broken journal of Optuna's ({error}); move it away: the sweeps begin "
            "anew, and reuse the runs that are there"
        ) from None


class _Lock(JournalFileOpenLock):
    """Optuna's lock by O_EXCL, after which the journal ends with a whole line.

    Not its lock by symbolic link: SMB has none, and its age is the journal's, not its own.
    """

    def __init__(self, name: str, grace_period: int) -> None:
        super().__init__(name, grace_period)
        self._journal = name

    def acquire(self) -> bool:
        """See JournalFileOpenLock. Raises OSError where the file cannot be mended."""
        super().acquire()
        try:
            cut_torn_line(self._journal)
        except BaseException:
            self.release()
            raise
        return True


class _Backend(JournalFileBackend):
    """What cannot be appended is an OSError that names the file."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """See JournalFileBackend."""
        try:
            super().append_logs(logs)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file_path) from error
        except RuntimeError as error:
            # Optuna's word for a lock file that could not be removed, or was taken away.
            said = f"its lock was lost ({error.__context__})"
            raise OSError(errno.EIO, said, self._file_path) from error


def cut_torn_line(name: str) -> None:
    """Remove what stands behind the last line's end; only for who holds the lock.

    A writer that was killed, or had no room, leaves half a record. Optuna passes over it as long
    as it is the last thing, but appends to it: then the next record is lost with it, and the
    record after that makes the file unreadable.
    """
    with open(name, "r+b") as file:  # noqa: PTH123 - Optuna's name is a str
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            whole = file.read(end - start).rfind(b"\n") + 1
            end = start + whole
            if whole:
                break
        if end < size:
            file.truncate(end)


def _check_head(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_BEGINS))
    except FileNotFoundError:
        return
    if not _BEGINS.startswith(head):
        raise RequestError(f"{file} is not a journal of Optuna's; move it away")
