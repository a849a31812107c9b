"""This machine: cores, memory, shared memory, open files, and what a container leaves of them."""

from __future__ import annotations

import math
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from sweeps.doctor.base import Asked, Check, Finding, ok, warning, wrong
from sweeps.resources import usable_cpus

CGROUP = Path("/sys/fs/cgroup")
MEMORY = Path("/proc/meminfo")
SHARED = Path("/dev/shm")
_GIB = 2**30
_LITTLE_MEMORY = 2 * _GIB
_LITTLE_SHARED = _GIB
_FEW_FILES = 4096
_BUILT = 1_735_689_600  # 2025-01-01: no clock that is right is before that
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def _cores(_: Asked) -> Iterator[Finding]:
    cores, share = usable_cpus(), _quota()
    told = f"{cores} of {os.cpu_count()} cores usable"
    if share is not None and share < cores:
        yield warning(
            f"{told}, but the container gets {share:g} of them: as many threads would wait for "
            "each other",
            f"say so in the sweep file: resources: {{cpus: {max(1, math.floor(share))}}}",
        )
    else:
        yield ok(told)
    for name in _THREADS:
        threads = os.environ.get(name, "")
        if threads.isdigit() and int(threads) > cores:
            yield warning(f"{name}={threads} is more than the cores", f"unset {name}")


def _quota() -> float | None:
    """Cores that a control group leaves, by version 2 or 1; None for no limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (CGROUP / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (CGROUP / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None  # `max`, or -1
    return int(quota) / int(period)


def _memory(_: Asked) -> Iterator[Finding]:
    free, limit = _available(), _memory_limit()
    if free is None:
        return
    told = f"{free / _GIB:.1f} GiB of memory available"
    if limit is not None:
        told += f", the container's limit is {limit / _GIB:.1f} GiB"
        free = min(free, limit)
    yield ok(told) if free >= _LITTLE_MEMORY else warning(told)


def _available() -> int | None:
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:  # no Linux
        return None
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kilobytes) * 1024 for kilobytes in found), None)


def _memory_limit() -> int | None:
    for file in (CGROUP / "memory.max", CGROUP / "memory" / "memory.limit_in_bytes"):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        # Version 1 has no word for "none": the largest number of pages stands for it.
        if text.isdigit() and int(text) < 2**60:
            return int(text)
    return None


def _shared(_: Asked) -> Iterator[Finding]:
    if not SHARED.is_dir():
        return
    size = shutil.disk_usage(SHARED)
    told = f"{SHARED} has {size.free / _GIB:.1f} of {size.total / _GIB:.1f} GiB free"
    yield ok(told) if size.free >= _LITTLE_SHARED else warning(told)


def _open_files(_: Asked) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = soft == resource.RLIM_INFINITY
    told = f"a process may open {'any number of' if endless else soft} files"
    few = not endless and soft < _FEW_FILES
    yield warning(told, f"ulimit -n {min(hard, 65536)}" if hard > soft else "") if few else ok(told)


def _clock(_: Asked) -> Iterator[Finding]:
    told = f"the clock says {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC"
    yield ok(told) if time.time() > _BUILT else wrong(told)


CHECKS = (
    Check(
        "machine.cores",
        "usable cores against a container's quota and OMP_NUM_THREADS",
        "let threads and cores agree: resources.cpus in the sweep file, OMP_NUM_THREADS unset",
        _cores,
    ),
    Check(
        "machine.memory",
        "memory that is available, and a container's limit; less than 2 GiB is little",
        "end what else runs here, or give the container more (docker run --memory)",
        _memory,
    ),
    Check(
        "machine.shared_memory",
        "room in /dev/shm, through which Ray and loaders pass data; less than 1 GiB is little",
        "docker run --shm-size 8g; in Kubernetes mount an emptyDir of medium Memory at /dev/shm",
        _shared,
    ),
    Check(
        "machine.open_files",
        f"how many files a process may open; Ray and PostgreSQL want {_FEW_FILES} and more",
        "raise the limit: ulimit -n, LimitNOFILE= of a systemd unit, ulimits of a container",
        _open_files,
    ),
    Check(
        "machine.clock",
        "whether this machine's clock is set at all",
        "set it: timedatectl set-ntp true, or chronyd",
        _clock,
    ),
)
