"""Where figures come from, and how pairs of them are told: shared by the benchmarks."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
"""Ends with its parent, also where that is killed."""


def describe() -> str:
    """One line: date, processor, cores, versions, and the load of the last minute."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = importlib.metadata.version("torch")
    return (
        f"{now}; {_processor()}, {cores} cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, torch {torch}"
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """A Python process that computes without a pause as long as the block lasts."""
    process = subprocess.Popen([sys.executable, "-c", SPIN, str(os.getpid())])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def median_and_range(values: Sequence[float], digits: int = 2) -> str:
    """`median (least to greatest)`, or the value alone when there is a single one."""
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Of each pair; the two of a pair ran one after the other."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]
