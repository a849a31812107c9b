"""What a container leaves of a machine, as its files say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.doctor import machine
from tests.sweeps.doctor.findings import look, only

Group = Callable[..., None]


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    """Lets files of a control group hold texts."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "usable_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def hold(**texts: str) -> None:
        for name, text in texts.items():
            file = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{text}\n")

    return hold


def test_a_quota_below_the_cores_is_told_with_what_to_write(group: Group, tmp_path: Path) -> None:
    assert "8 of" in only(look("machine.cores", tmp_path), "ok")
    group(cpu__cpu_dot_cfs_quota_us="-1", cpu__cpu_dot_cfs_period_us="100000")
    only(look("machine.cores", tmp_path), "ok")
    group(cpu__cpu_dot_cfs_quota_us="150000")
    told = only(look("machine.cores", tmp_path), "warning")
    assert "the container gets 1.5 of them" in told
    assert "resources: {cpus: 1}" in told
    group(cpu_dot_max="400000 100000")
    assert "gets 4 of them" in only(look("machine.cores", tmp_path), "warning")
    group(cpu_dot_max="max 100000")
    only(look("machine.cores", tmp_path), "ok")


@pytest.mark.usefixtures("group")
def test_more_threads_than_cores_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    _, found = look("machine.cores", tmp_path)
    assert (found.level, found.advice) == ("warning", "unset OMP_NUM_THREADS")


def test_a_limit_of_memory_counts_as_what_is_there(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "meminfo"
    known.write_text("MemTotal: 99999999 kB\nMemAvailable: 33554432 kB\n")
    monkeypatch.setattr(machine, "MEMORY", known)
    assert "32.0 GiB of memory" in only(look("machine.memory", tmp_path), "ok")
    group(memory__memory_dot_limit_in_bytes=str(2**63 - 4096))  # version 1's word for "none"
    only(look("machine.memory", tmp_path), "ok")
    group(memory_dot_max=str(2**30))
    assert "limit is 1.0 GiB" in only(look("machine.memory", tmp_path), "warning")
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "of no Linux")
    assert look("machine.memory", tmp_path) == []


def test_what_is_scarce_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**26, 0, 2**26))
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    assert "--shm-size" in only(look("machine.shared_memory", tmp_path), "warning")
    monkeypatch.setattr(machine, "SHARED", tmp_path / "not there")
    assert look("machine.shared_memory", tmp_path) == []
