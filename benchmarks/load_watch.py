"""What a process and a server's processes take while something is measured; Linux."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path


class Watch:
    """Looks at this process and the server while runs report."""

    def __init__(self, waiting: Callable[[], int], session: int | None) -> None:
        self._waiting, self._session = waiting, session
        self._memory = _memory_mb()
        self.most_waiting, self.threads, self.grown_mb = 0, 0, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        self._cpu, self._server_cpu = time.process_time(), _cpu_of(session)

    def stop(self) -> None:
        """Until here it counts."""
        self.cpu_s = time.process_time() - self._cpu
        self.server_s = _cpu_of(self._session) - self._server_cpu
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(1):
            self.most_waiting = max(self.most_waiting, self._waiting())
            self.threads = max(self.threads, threading.active_count())
            self.grown_mb = max(self.grown_mb, _memory_mb() - self._memory)


def _memory_mb() -> float:
    """What of this process is in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _cpu_of(session: int | None) -> float:
    """CPU seconds of all processes of a session."""
    found = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == session:
            found += int(fields[11]) + int(fields[12])
    return found / os.sysconf("SC_CLK_TCK")
