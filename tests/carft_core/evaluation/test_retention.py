"""What a tuned model keeps on other tasks: measured as these are, and nothing is trained again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData
from carft_sweep.carft_core.data.families.icon_shift import ICON_SHIFT_DEV
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.runs.evaluations import RunResult, finish, is_complete
from carft_sweep.carft_core.runs.identity import evaluation_digest, identify
from carft_sweep.carft_core.training.loop import epochs
from carft_sweep.carft_core.training.setup import open_setup, other_data
from tests import downstream_tree
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, trained, weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data root with three of the downstream tasks."""
    folder = tmp_path_factory.mktemp("downstream")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cifar10", "dtd", "oxford_pets"):
            downstream_tree.make(folder, name, patch)
        yield folder


@pytest.fixture(scope="module")
def config(root: Path, tiny_clip_files: Path) -> Config:
    """`config("oxford_pets", algorithm="zero_shot")`: of DTD, measured on these others."""

    def build(*tasks: str, family: str = "dtd", **changes: Any) -> TrialConfig:
        fields = {
            "model": {"name": str(tiny_clip_files)},
            "data": {"family": family, **({} if "icon" in family else {"root": str(root)})},
            "algorithm": "fine_tune",
            "optim": {"lr": 1e-2, "steps": 2, "batch_size": 16, "warmup": 0},
            "eval": {"retention": list(tasks)},
            "device": "cpu",
        }
        return trial_config(fields | changes)

    return build


def run(config: TrialConfig, folder: Path) -> RunResult:
    return trained(config, folder / "run")


@pytest.fixture(scope="module")
def tuned(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """A run on DTD with merges, measured on CIFAR-10 and the pets."""
    folder = tmp_path_factory.mktemp("tuned")
    merges = [{"name": "wise_ft", "alphas": [0.0, 0.5]}]
    return folder, run(config("cifar10", "oxford_pets", merges=merges), folder)


def test_the_zero_shot_model_is_measured_as_on_its_task(config: Config, tmp_path: Path) -> None:
    other = run(config("oxford_pets", algorithm="zero_shot"), tmp_path / "other").metrics
    own = run(config(family="oxford_pets", algorithm="zero_shot"), tmp_path / "own").metrics
    assert other["retention/oxford_pets/top1"] == own["id/test/top1"]
    assert other["retention/mean/top1"] == own["id/test/top1"]
    assert other["retention/gain/top1"] == 0
    assert not any(name.startswith("retention/") for name in own)
    # CLIP's authors' metric for the pets; each class has one image here.
    assert own["id/test/mean_per_class_top1"] == pytest.approx(own["id/test/top1"])


def test_the_tuned_tower_is_measured_with_the_other_tasks_zero_shot_head(
    config: Config, tuned: tuple[Path, RunResult]
) -> None:
    folder, result = tuned
    setup = open_setup(config(family="oxford_pets"))
    classifier = setup.teacher.new_classifier().eval()
    state = {name: value for name, value in weights(folder / "run").items() if "visual." in name}
    classifier.load_state_dict(state, strict=False)
    test, transform = setup.data.id_test, setup.teacher.transform
    views = test.views(range(len(test)), transform=transform, seed=None, epoch=0)
    with torch.inference_mode():
        logits = classifier(transform.normalise(views))
    right = (logits.argmax(dim=1) == test.labels).double().mean()
    assert result.metrics["retention/oxford_pets/top1"] == float(right)
    table = pq.read_table(folder / "run/evaluations/unmerged/predictions.parquet").to_pandas()
    rows = table[table.split == "retention/oxford_pets"]
    assert list(rows.id) == list(test.ids)
    assert (rows.prediction == rows.label).mean() == float(right)


def test_the_mean_is_over_tasks_and_the_gain_since_zero_shot(tuned: tuple[Path, RunResult]) -> None:
    _, result = tuned
    metrics, start = result.metrics, result.merges["wise_ft@0"]["metrics"]
    tasks = ("cifar10", "oxford_pets")
    for of in (metrics, start, result.merges["wise_ft@0.5"]["metrics"]):
        mean = sum(of[f"retention/{name}/top1"] for name in tasks) / 2
        assert of["retention/mean/top1"] == pytest.approx(mean)
    assert start["retention/gain/top1"] == 0
    gain = metrics["retention/mean/top1"] - start["retention/mean/top1"]
    assert metrics["retention/gain/top1"] == pytest.approx(gain)
    assert not any("retention" in name and name.startswith("context") for name in metrics)
    assert not any(name.startswith("ood/") for name in metrics), "the tasks are no shifts"
    facts, tested = result.facts, {"retention/cifar10": 10, "retention/oxford_pets": 37}
    assert facts["images"] == {"id/val": 47, "id/test": 47, **tested}
    assert re.fullmatch(r"Retention\(cifar10=\w{12}, oxford_pets=\w{12}\)", facts["retention"])
    assert any(note.startswith("oxford_pets: test has 37 images") for note in facts["data_notes"])


def test_another_task_is_measured_without_training(
    config: Config, tuned: tuple[Path, RunResult]
) -> None:
    folder, result = tuned
    more, none = config("oxford_pets", "dtd"), config()
    assert identify(more, 0).digest == identify(none, 0).digest == result.digest
    digests = {evaluation_digest("x", None, asked) for asked in (more, none, config("cifar10"))}
    assert len(digests) == 3
    assert not is_complete(folder / "run", more)
    before = (folder / "run/weights/last.safetensors").read_bytes()
    again = finish(folder / "run", more, 0).metrics
    assert again["retention/mean/top1"] == result.metrics["retention/oxford_pets/top1"]
    assert "retention/dtd/top1" not in again, "a run's own task is no other"
    assert (folder / "run/weights/last.safetensors").read_bytes() == before


def test_the_built_in_model_forgets_as_any_other(config: Config, tmp_path: Path) -> None:
    prompts = {"classes": "class_only", "contexts": "class_only"}
    built_in = config("icon_shift_dev", model={"name": "builtin"}, prompts=prompts)
    metrics = run(built_in, tmp_path).metrics
    assert metrics["retention/mean/top1"] == metrics["retention/icon_shift_dev/top1"]
    assert metrics["retention/gain/top1"] < 0


def opened_others(config: TrialConfig) -> dict[str, FamilyData]:
    return other_data(config.data, config.eval)


def test_names_are_those_of_other_families_each_once(config: Config) -> None:
    refused(r"eval\.retention\[0\]: unknown family 'cifar11'; did you", config, "cifar11")
    refused(r"eval\.retention: dtd is in the list twice", config, "dtd", "dtd")
    refused(r"eval\.retention: dtd is what the run is tuned on", opened_others, config("dtd"))
    assert opened_others(config()) == {}


def test_data_that_are_not_there_are_told_at_once(
    config: Config, root: Path, tmp_path: Path
) -> None:
    lacking = config("food101")
    refused(r"eval\.retention: food101: data\.root: .* lacks folders", opened_others, lacking)
    elsewhere = {"retention": ["cifar10"], "retention_root": str(tmp_path)}
    refused(f"{tmp_path} lacks folders", opened_others, config(eval=elsewhere))
    unplaced = config("cifar10", family="icon_shift_dev")
    refused(r"eval\.retention_root: which folder holds the data", opened_others, unplaced)
    places = {**elsewhere, "retention_root": str(root)}
    tasks = opened_others(config(family="icon_shift_dev", eval=places))
    assert len(tasks["cifar10"].id_test) == 10


@pytest.mark.usefixtures("registries")
def test_a_family_that_cannot_be_measured_is_told_at_once(config: Config, tmp_path: Path) -> None:
    def open_untested(config: Any) -> Any:
        return replace(ICON_SHIFT_DEV.open(config), test=None)

    def open_wordy(config: Any) -> Any:
        data = ICON_SHIFT_DEV.open(config)
        return replace(data, class_names=tuple("very " * 80 + name for name in data.class_names))

    FAMILIES.register(Family("untested", "has no test", open_untested))
    refused(r"eval\.retention: untested has no test", opened_others, config("untested"))
    FAMILIES.register(Family("wordy", "has long names", open_wordy))
    with pytest.raises(RequestError, match=r"eval\.retention: wordy: .* longer than the 77 tokens"):
        next(epochs(config("wordy"), 0, workdir=tmp_path))
