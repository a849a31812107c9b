"""What the tracking server lacks, the data root, files of secrets, and GPUs that are not here."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sweeps.doctor.base import Level
from sweeps.doctor.machine import _compiled
from sweeps.engines.resources import Gpu
from sweeps.ledger.claim import Claim
from sweeps.secrets import read_secret_files
from tests.sweeps.conftest import ToySweep
from tests.sweeps.doctor.findings import look, only
from tracking.store.base import RunKey, RunStart
from tracking.store.mlflow_store import open_store


def test_runs_that_the_server_lacks_are_counted_by_sweep(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = toy.home.path
    assert look("sent.behind", home) == []
    toy.run()
    assert look("sent.behind", home) == []
    for file in toy.home.sweep("toy").glob("sent/*"):
        file.unlink()
    told = only(look("sent.behind", home), "warning")
    assert told == "7 runs of toy are not recorded as here -> carft-sweep sync"
    with Claim(toy.home.sweep("toy")):
        assert look("sent.behind", home) == [], "its driver sends them"
    toy.run()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:5000")
    assert "7 runs of toy" in only(look("sent.behind", home), "warning"), "of another server"


def test_a_home_that_was_moved_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before, after = tmp_path / "before", tmp_path / "after"
    assert look("sent.moved", before) == []
    with closing(open_store(before)) as store:
        store.start_run(RunStart(RunKey("toy"), "toy", 0))
    assert look("sent.moved", before) == []
    before.rename(after)
    told = only(look("sent.moved", after), "warning")
    assert f"keeps artifacts in {before}" in told
    assert "carft-sweep sync" in told


def test_a_data_root_names_the_families_that_it_has(
    tmp_path: Path, imagenet_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is not set" in only(look("data.root", tmp_path), "ok")
    cases: tuple[tuple[Path, Level, str], ...] = (
        (imagenet_root, "ok", "has folders of imagenet"),
        (tmp_path, "warning", "no folder that a family reads"),
        (tmp_path / "not there", "wrong", "is no folder"),
    )
    for root, level, said in cases:
        monkeypatch.setenv("CARFT_DATA", str(root))
        assert said in only(look("data.root", tmp_path), level)
    monkeypatch.setenv("CARFT_DATA", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be read" in only(look("data.root", tmp_path), "wrong")


def test_files_of_secrets_that_others_can_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.secrets._READ", {})
    file, own = tmp_path / "password", tmp_path / "ui" / "users.db"
    own.parent.mkdir()
    for path in (file, own):
        path.write_text("a secret\n")
    file.chmod(0o644)
    own.chmod(0o600)
    read_secret_files({"MLFLOW_TRACKING_PASSWORD_FILE": str(file)})
    told, fine = look("secrets.files", tmp_path)
    assert (told.level, told.advice) == ("warning", f"chmod 600 {file}")
    assert "MLFLOW_TRACKING_PASSWORD" in told.message
    assert fine.level == "ok"


@pytest.mark.parametrize(
    ("capability", "built", "fits"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_80"], True),
        ((12, 0), ["sm_90", "sm_90a"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((6, 1), ["sm_75", "compute_75"], False),
        ((9, 0), [], False),
    ],
)
def test_a_gpu_runs_what_was_compiled_for_its_kind(
    capability: tuple[int, int], built: list[str], fits: bool
) -> None:
    assert _compiled(*capability, built) == fits


def test_gpus_are_tried_and_what_torch_does_not_see_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: dict[str, Any] = {"name": "A GPU", "major": 8, "minor": 0}
    monkeypatch.setattr("sweeps.doctor.machine.visible_gpus", lambda _: [Gpu(80_000.0)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "nvidia-smi lists 1 GPUs, but torch" in only(look("gpu.devices", tmp_path), "wrong")
    monkeypatch.setattr("sweeps.doctor.machine.visible_gpus", lambda _: [])
    assert "no GPU" in only(look("gpu.devices", tmp_path), "ok")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert only(look("gpu.devices", tmp_path), "ok").startswith("mps")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**kind))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    assert "not compiled for capability 8.0" in only(look("gpu.devices", tmp_path), "wrong")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**36))
    monkeypatch.setattr(torch, "device", lambda *_: "cpu")
    told = only(look("gpu.devices", tmp_path), "warning")
    assert "bf16, 1.0 of 64.0 GiB free" in told

    def broken(_: int) -> None:
        raise RuntimeError("CUDA error: an error\nmore of it")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert "A GPU: CUDA error: an error ->" in only(look("gpu.devices", tmp_path), "wrong")
