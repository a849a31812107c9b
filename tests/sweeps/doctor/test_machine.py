"""This machine as the doctor sees it: versions, cores, GPUs, home, data, files of secrets."""

from __future__ import annotations

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
from carft_sweep.sweeps.doctor.machine import SHOWN
from carft_sweep.sweeps.engines import resources
from carft_sweep.sweeps.engines.resources import Gpu
from carft_sweep.sweeps.secrets import read_secret_files
from tests.sweeps.doctor.findings import look, only


def asks_for(monkeypatch: pytest.MonkeyPatch, *required: str) -> None:
    """Let carft-sweep ask for these."""
    real = metadata.requires

    def requires(name: str) -> list[str] | None:
        return [*required] if name == "carft-sweep" else real(name)

    monkeypatch.setattr(metadata, "requires", requires)


def not_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for function in ("version", "requires", "metadata"):
        real = getattr(metadata, function)

        def asked(name: str, real: Callable[[str], Any] = real) -> Any:
            if name in names:
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(metadata, function, asked)


def test_here_everything_is_as_it_should_be(tmp_path: Path) -> None:
    told = only(look("versions.packages", tmp_path), "ok")
    assert all(f"{name} {metadata.version(name)}" in told for name in SHOWN)


def test_what_is_missing_or_outside_of_its_range_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks_for(monkeypatch, "optuna<4", "nobody-has-this>=1", "torch>=2", "elsewhere; extra == 'x'")
    old, missing, shown = look("versions.packages", tmp_path)
    assert (old.level, missing.level, shown.level) == ("wrong", "wrong", "ok")
    assert old.message == f"optuna {metadata.version('optuna')} is outside of <4"
    assert missing.message == "nobody-has-this is not installed"


def test_sources_that_were_never_installed_still_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_installed(monkeypatch, "carft-sweep")
    only(look("versions.packages", tmp_path), "warning")


Group = Callable[..., None]


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    """Lets files of a control group hold texts."""
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
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
    group(cpu_dot_max="150000 100000")
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


def test_what_is_scarce_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**26, 0, 2**26))
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    assert "--shm-size" in only(look("machine.shared_memory", tmp_path), "warning")
    monkeypatch.setattr(machine, "SHARED", tmp_path / "not there")
    assert look("machine.shared_memory", tmp_path) == []


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


def test_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    for free, level in {10_000: "ok", 1_000: "warning", 100: "wrong"}.items():
        monkeypatch.setattr(shutil, "disk_usage", lambda _, mb=free: usage(0, 0, mb * 2**20))
        assert look("home.disk", tmp_path)[0].level == level


def test_a_home_that_anybody_may_write_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    message = only(look("home.private", tmp_path), "warning")
    assert "can be written by everybody" in message
    assert f"chmod go-w {tmp_path}" in message
    monkeypatch.setenv("CARFT_SHARED_HOMES", str(tmp_path))
    assert "it is shared on purpose" in only(look("home.private", tmp_path), "ok")


def test_files_of_secrets_that_others_can_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carft_sweep.sweeps.secrets._READ", {})
    monkeypatch.setenv("HOME", str(tmp_path))  # which has no token of Ray's
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    file = tmp_path / "password"
    file.write_text("a secret\n")
    file.chmod(0o644)
    read_secret_files({"MLFLOW_TRACKING_PASSWORD_FILE": str(file)})
    (told,) = look("secrets.files", tmp_path)
    assert (told.level, told.advice) == ("warning", f"chmod 600 {file}")
    assert "MLFLOW_TRACKING_PASSWORD" in told.message
    file.chmod(0o600)
    (fine,) = look("secrets.files", tmp_path)
    assert fine.level == "ok"


def test_rays_token_that_others_can_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself makes the first with the umask's permissions."""
    monkeypatch.setattr("carft_sweep.sweeps.secrets._READ", {})
    monkeypatch.setenv("HOME", str(tmp_path))
    made, named = tmp_path / ".ray" / "auth_token", tmp_path / "token"
    made.parent.mkdir()
    for file in (made, named):
        file.write_text("token")
        file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    findings = look("secrets.files", tmp_path)
    assert [(it.level, it.advice) for it in findings] == [
        ("warning", f"chmod 600 {file}") for file in (named, made)
    ]
    for file in (made, named):
        file.chmod(0o600)
    assert {it.level for it in look("secrets.files", tmp_path)} == {"ok"}
    named.unlink()
    made.unlink()
    assert f"{named} (RAY_AUTH_TOKEN_PATH) is no file" in only(
        look("secrets.files", tmp_path), "wrong"
    )


def test_gpus_are_tried_and_what_torch_does_not_see_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: dict[str, Any] = {"name": "A GPU", "major": 8, "minor": 0}
    monkeypatch.setattr(
        "carft_sweep.sweeps.engines.resources.visible_gpus", lambda _: [Gpu(80_000.0)]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "nvidia-smi lists 1 GPU, but torch" in only(look("gpu.devices", tmp_path), "wrong")
    monkeypatch.setattr("carft_sweep.sweeps.engines.resources.visible_gpus", lambda _: [])
    assert "no GPU" in only(look("gpu.devices", tmp_path), "ok")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert only(look("gpu.devices", tmp_path), "ok").startswith("mps")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**kind))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**36))
    monkeypatch.setattr(torch, "device", lambda *_: "cpu")
    told = only(look("gpu.devices", tmp_path), "warning")
    assert "bf16, 1.0 of 64.0 GiB free" in told

    def broken(_: int) -> None:
        raise RuntimeError("CUDA error: an error\nmore of it")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert "A GPU: CUDA error: an error ->" in only(look("gpu.devices", tmp_path), "wrong")
