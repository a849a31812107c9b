"""The home as the doctor sees it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.mounts import mount
from tests.sweeps.doctor.findings import look, only


def test_a_home_is_written_locked_and_left_as_it_was(tmp_path: Path) -> None:
    assert "can be written and locked" in only(look("home.folder", tmp_path), "ok")
    assert look("home.private", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_one_that_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "is no folder" in only(look("home.folder", file), "wrong")
    assert "the first run makes it" in only(look("home.folder", tmp_path / "new" / "er"), "ok")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert f"{tmp_path} cannot be written" in only(look("home.folder", tmp_path / "new"), "wrong")


def test_one_that_cannot_be_written_is_told_once() -> None:
    never = Path("/proc/self")  # not even by root
    assert "/proc/self cannot be written: " in only(look("home.folder", never), "wrong")


def test_where_sqlite_would_lose_data_it_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "of this machine alone" in only(look("home.file_system", home), "ok")
    mount(monkeypatch, home, "nfs4")
    assert "network file system (nfs4)" in only(look("home.file_system", home), "wrong")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:5000")
    assert "on nfs4, shared" in only(look("home.file_system", home), "ok")


def test_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    for free, level in {10_000: "ok", 1_000: "warning", 100: "wrong"}.items():
        monkeypatch.setattr(shutil, "disk_usage", lambda _, mb=free: usage(0, 0, mb * 2**20))
        assert look("home.disk", tmp_path)[0].level == level
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=1000, f_favail=3))
    assert "only 3 more files" in look("home.disk", tmp_path)[1].message


def test_a_home_that_anybody_may_write_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert f"chmod o-w {tmp_path}" in only(look("home.private", tmp_path), "warning")
