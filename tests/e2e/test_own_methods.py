"""A user's own algorithm, families and images, swept as the docs tell it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from carft_sweep.sweeps.cli import main
from tests.e2e.conftest import APART, ROOT
from tests.image_files import noise_folder

CHANGES = {
    "import": ["./lwf.py", "./my_family.py"],
    "tasks": "data.family",
    "parameters": {"data.family": {"values": ["photos.family.yaml", "my_family"]}},
    "seeds": [0],
    "report": {"page": False, "model": False},  # they take longer than this sweep
}
SMALL = (
    *("parameters.algorithm.kl_weight.values=[1.0]", "seeds=1", "baselines=[zero_shot]"),
    *("optim={lr: 3e-4, epochs: 1, batch_size: 8}", "resources.cpus=1"),
    *("prompts={classes: simple, contexts: simple}", "report={page: false, model: false}"),
)


@pytest.fixture
def forgotten(registries: None) -> Iterator[None]:
    """What the files of the examples register and import is gone afterwards."""
    del registries
    yield
    for name in ("lwf", "my_family"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.timeout(600)
def test_an_own_algorithm_is_swept_on_own_images_and_on_a_family_of_a_module(
    tmp_path: Path,
    tiny_clip_files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker process trains, so that what declares and what imports them travels."""
    folder, home, elsewhere = (tmp_path / name for name in ("mine", "home", "elsewhere"))
    shutil.copytree(ROOT / "examples" / "own_method", folder)
    shutil.copy(ROOT / "examples" / "my_family.py", folder)
    counts = {"train": 12, "test": 4, "shifts/blur": 4, "shifts/night": 4}
    noise_folder(folder / "photos", counts, {"red": [200, 60, 60], "blue": [60, 60, 200]})
    arrays = elsewhere / "data" / "my_family"  # of a relative path in the module
    arrays.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("train", "test", "sketch"):
        pixels = rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
        np.savez(arrays / f"{name}.npz", pixels=pixels, labels=np.arange(12) % 2)
    file = folder / "lwf.yaml"
    spec = yaml.safe_load(file.read_text()) | CHANGES
    spec["trial"] |= {"model": {"name": str(tiny_clip_files)}, "data": {"val_fraction": 0.25}}
    spec["trial"] |= {"optim": {"epochs": 1, "batch_size": 6}, "merges": [], "device": "cpu"}
    file.write_text(yaml.safe_dump(spec))
    for name in APART:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(elsewhere)
    at_home = ("--json", "--home", str(home))
    assert main(["run", str(file), "--engine", "local", *at_home]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["algorithm"] for row in rows} == {"lwf", "fine_tune", "zero_shot"}
    assert main(["show", "lwf", *at_home]) == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    runs = [run for trial in trials for run in trial["runs"]]
    for run, shift in zip(runs, ("blur", "sketch"), strict=True):
        assert f"ood/{shift}/top1" in run["metrics"]
        assert "train/distillation" in (Path(run["folder"]) / "history.json").read_text()


@pytest.mark.usefixtures("registries")
def test_a_folder_of_images_becomes_a_sweep_with_its_shift(
    images: Path, tmp_path: Path, tiny_clip_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(images), "--out", str(tmp_path), "--name", "noise", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["counts"]["dark"] == {"blue": 4, "red": 4}
    home = ("--home", str(tmp_path / "home"))
    words = [f"model={{name: {tiny_clip_files}}}", *SMALL]
    changes = [part for word in words for part in ("--set", word)]
    assert main(["run", answer["sweep"], "--in-process", *changes, *home]) == 0
    capsys.readouterr()
    assert main(["show", "noise", "--json", *home]) == 0
    (trial,) = json.loads(capsys.readouterr().out)["trials"]
    (run,) = trial["runs"]
    assert run["state"] == "done"
    assert {"id/val/top1", "id/test/top1", "ood/dark/top1", "gap/top1"} <= run["metrics"].keys()
