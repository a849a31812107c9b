"""This machine as the doctor sees it: versions, cores, GPUs, home, data, files of secrets."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from carft_sweep.sweeps.doctor import machine
from carft_sweep.sweeps.doctor.checks import Level
from carft_sweep.sweeps.doctor.machine import SHOWN
from carft_sweep.sweeps.engines import resources
from carft_sweep.sweeps.engines.resources import Gpu
from carft_sweep.sweeps.secrets import read_secret_files
from tests.sweeps.doctor.findings import look, only

OURS = "carft-sweep"


def test_packages_are_told_and_what_is_missing_or_outside_of_its_range_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = only(look("versions.packages", tmp_path), "ok")
    assert all(f"{name} {metadata.version(name)}" in message for name in SHOWN)
    real = metadata.requires
    ours = ["optuna<4", "nobody-has-this>=1", "torch>=2", "elsewhere; extra == 'x'"]
    monkeypatch.setattr(metadata, "requires", lambda of: ours if of == OURS else real(of))
    old, missing, shown = look("versions.packages", tmp_path)
    assert (old.level, missing.level, shown.level) == ("wrong", "wrong", "ok")
    assert old.message == f"optuna {metadata.version('optuna')} is outside of <4"
    assert missing.message == "nobody-has-this is not installed"


def test_sources_that_were_never_installed_still_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(real: Callable[[str], Any], name: str) -> Any:
        if name == OURS:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    for name in ("version", "requires", "metadata"):
        monkeypatch.setattr(metadata, name, functools.partial(asked, getattr(metadata, name)))
    only(look("versions.packages", tmp_path), "warning")


def test_a_quota_below_the_cores_and_more_threads_than_cores_are_told_with_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "usable_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "8 of" in only(look("machine.cores", tmp_path), "ok")
    for quota, level, fragment in (
        ("150000", "warning", "the container gets 1.5 of them"),
        ("150000", "warning", "resources: {cpus: 1}"),
        ("400000", "warning", "gets 4 of them"),
        ("max", "ok", "8 of"),
    ):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        (finding,) = look("machine.cores", tmp_path)
        assert (finding.level, fragment in f"{finding.message} {finding.advice}") == (level, True)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    _, finding = look("machine.cores", tmp_path)
    assert (finding.level, finding.advice) == ("warning", "unset OMP_NUM_THREADS")


def test_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    for free, level in {10_000: "ok", 1_000: "warning", 100: "wrong"}.items():
        monkeypatch.setattr(shutil, "disk_usage", lambda _, mb=free: usage(0, 0, mb * 2**20))
        assert look("home.disk", tmp_path)[0].level == level
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**26, 0, 2**26))
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    assert "--shm-size" in only(look("machine.shared_memory", tmp_path), "warning")
    monkeypatch.setattr(machine, "SHARED", tmp_path / "not there")
    assert look("machine.shared_memory", tmp_path) == []


def test_a_home_is_written_locked_and_left_as_it_was_and_one_that_cannot_be_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "can be written and locked" in only(look("home.folder", tmp_path), "ok")
    assert (look("home.private", tmp_path), list(tmp_path.iterdir())) == ([], [])
    tmp_path.chmod(0o777)
    message = only(look("home.private", tmp_path), "warning")
    assert "can be written by everybody" in message
    assert f"chmod go-w {tmp_path}" in message
    monkeypatch.setenv("CARFT_SHARED_HOMES", str(tmp_path))
    assert "it is shared on purpose" in only(look("home.private", tmp_path), "ok")
    (tmp_path / "sweeps" / "kl").mkdir(parents=True)
    for path in tmp_path.rglob("*"):
        path.chmod(0o770)
    assert [finding.level for finding in look("home.private", tmp_path)] == ["ok"]
    (tmp_path / "ray-token").touch(0o600)  # Ray wants it so
    assert [finding.level for finding in look("home.private", tmp_path)] == ["ok"]
    (tmp_path / "sweeps" / "kl").chmod(0o750)
    _, closed = look("home.private", tmp_path)
    assert closed.level == "wrong"
    assert "its group may not write sweeps/kl of user" in closed.message
    assert f"chmod -R g+w {tmp_path}" in closed.advice
    shutil.rmtree(tmp_path / "sweeps")
    (tmp_path / "file").touch()
    assert "is no folder" in only(look("home.folder", tmp_path / "file"), "wrong")
    assert "the first run makes it" in only(look("home.folder", tmp_path / "new" / "er"), "ok")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert f"{tmp_path} cannot be written" in only(look("home.folder", tmp_path / "new"), "wrong")


def test_files_of_secrets_and_rays_token_that_others_can_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself makes the first token with the umask's permissions."""
    monkeypatch.setattr("carft_sweep.sweeps.secrets._READ", {})
    monkeypatch.setenv("HOME", str(tmp_path))
    password, named = tmp_path / "password", tmp_path / "token"
    made = tmp_path / ".ray" / "auth_token"
    made.parent.mkdir()
    for file in (password, named, made):
        file.write_text("a secret\n")
        file.chmod(0o644)
    read_secret_files({"MLFLOW_TRACKING_PASSWORD_FILE": str(password)})
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    findings = look("secrets.files", tmp_path)
    assert [(finding.level, finding.advice) for finding in findings] == [
        ("warning", f"chmod 600 {file}") for file in (password, named, made)
    ]
    assert "MLFLOW_TRACKING_PASSWORD" in findings[0].message
    for file in (password, named, made):
        file.chmod(0o600)
    assert {finding.level for finding in look("secrets.files", tmp_path)} == {"ok"}
    named.unlink()
    made.unlink()
    (wrong,) = (finding for finding in look("secrets.files", tmp_path) if finding.level != "ok")
    assert (wrong.level, "is no file" in wrong.message) == ("wrong", True)
    assert f"{named} (RAY_AUTH_TOKEN_PATH)" in wrong.message


def test_gpus_are_tried_and_what_torch_does_not_see_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise RuntimeError("CUDA error: an error\nmore of it")

    def message_of(level: Level, *gpus: Gpu, mps: bool = False) -> str:
        listed = "carft_sweep.sweeps.engines.resources.visible_gpus"
        monkeypatch.setattr(listed, lambda _: [*gpus])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        return only(look("gpu.devices", tmp_path), level)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "nvidia-smi lists 1 GPU, but torch" in message_of("wrong", Gpu(80_000.0))
    assert "no GPU" in message_of("ok")
    assert message_of("ok", mps=True).startswith("mps")
    kind = SimpleNamespace(name="A GPU", major=8, minor=0)
    answers = {"is_available": True, "device_count": 1, "get_device_properties": kind}
    for name, answer in {**answers, "mem_get_info": (2**30, 2**36)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch, "device", lambda *_: "cpu")
    assert "bf16, 1.0 of 64.0 GiB free" in message_of("warning", mps=True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert "A GPU: CUDA error: an error ->" in message_of("wrong", mps=True)
