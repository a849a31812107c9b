"""What happens to files, as Linux tells it: the moments at which a kill hurts most."""

from __future__ import annotations

import ctypes
import os
import re
import select
import struct
import time
from collections import Counter
from pathlib import Path

_MODIFY, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x80, 0x100, 0x200
_FOLDER = 0x40000000
_KINDS = {_MODIFY: "written", _MOVED_TO: "renamed to", _CREATE: "created", _DELETE: "deleted"}
_HEAD = struct.Struct("iIII")
_LIBC = ctypes.CDLL(None, use_errno=True)
_DRAWN = re.compile(r"[0-9a-f]{32,64}|(?<=\.)[a-z0-9_]{8}(?=$|\.)")


class FileEvents:
    """What happens to the files below a folder, from now on; folders that come are watched too."""

    def __init__(self, root: Path) -> None:
        self._file = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders: dict[int, Path] = {}
        self.seen: Counter[str] = Counter()
        """How often each kind of event has come: `run.json renamed to`."""
        self._add(root)

    def close(self) -> None:
        """Watch no more."""
        os.close(self._file)

    def wait(self, seconds: float, kind: str | None = None, skip: int = 0) -> bool:
        """Wait until an event of this kind has come and `skip` before it; False where it has not
        within so many seconds.
        """
        until = time.monotonic() + seconds
        left = skip
        while (now := time.monotonic()) < until:
            if not select.select([self._file], [], [], until - now)[0]:
                continue
            for event in self._read():
                self.seen[event] += 1
                left -= event == kind
                if left < 0:
                    return True
        return False

    def _read(self) -> list[str]:
        try:
            data = os.read(self._file, 65536)
        except BlockingIOError:
            return []
        events, at = [], 0
        while at < len(data):
            watch, mask, _, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            name = data[at : at + length].rstrip(b"\0").decode()
            at += length
            if mask & _FOLDER and watch in self._folders:
                self._add(self._folders[watch] / name)
            kinds = [word for bit, word in _KINDS.items() if mask & bit]
            events += [f"{_DRAWN.sub('*', name)} {word}" for word in kinds]
        return events

    def _add(self, folder: Path) -> None:
        watch = _LIBC.inotify_add_watch(self._file, os.fsencode(folder), sum(_KINDS))
        if watch < 0:
            return  # it has gone meanwhile
        self._folders[watch] = folder
        for inner in (entry for entry in os.scandir(folder) if entry.is_dir()):
            self._add(Path(inner.path))
