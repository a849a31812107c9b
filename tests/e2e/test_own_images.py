"""From a folder of images to its metrics, as the docs tell it: `init`, then `run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carft_sweep.sweeps.cli import main

SMALL = (
    "parameters.algorithm.kl_weight.values=[1.0]",
    "seeds=1",
    "baselines=[zero_shot]",
    "optim={lr: 3e-4, epochs: 1, batch_size: 8}",
    "prompts={classes: simple, contexts: simple}",
    "report={page: false, model: false}",
    "resources.cpus=1",
)


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
    # That its file travels to a worker, test_own_methods.py has.
    assert main(["run", answer["sweep"], "--in-process", *changes, *home]) == 0
    capsys.readouterr()
    assert main(["show", "noise", "--json", *home]) == 0
    (trial,) = json.loads(capsys.readouterr().out)["trials"]
    (run,) = trial["runs"]
    assert run["state"] == "done"
    assert {"id/val/top1", "id/test/top1", "ood/dark/top1", "gap/top1"} <= run["metrics"].keys()
