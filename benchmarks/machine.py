"""A machine that is not at rest, and what a process takes of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
"""Ends with its parent, also where that is killed."""


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """A Python process that computes without a pause as long as the block lasts."""
    process = subprocess.Popen([sys.executable, "-c", SPIN, str(os.getpid())])
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Usage(NamedTuple):
    """What a process has taken so far (Linux)."""

    cpu_s: float
    """Processor seconds of all its threads."""
    memory: int
    """What of it is in memory now (RSS), in bytes; 0 once it has ended."""
    threads: int


def usage_of(pid: int) -> Usage:
    """Read what a process takes. Raises OSError where there is none of that number."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    memory = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), memory, int(fields[17]))
