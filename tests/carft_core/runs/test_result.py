"""A finished run: the end points of its merges, its metrics, and the zero-shot row."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.evaluations import finish, is_complete, read_result
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import MEASURING_REVISION, TRAINING_REVISION
from carft_sweep.carft_core.training.loop import train
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.refusals import refused
from tests.carft_core.stand_ins import watched
from tests.carft_core.trained import Config, trained

ENDS = [{"name": "wise_ft", "alphas": [0.0, 0.5, 1.0]}]


@pytest.fixture(scope="module")
def config(toy_config: Config) -> TrialConfig:
    return toy_config({"merges": ENDS})


@pytest.fixture(scope="module")
def run(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("result")
    trained(config, folder)
    return folder


def logits(folder: Path, label: str) -> dict[str, torch.Tensor]:
    table = pq.read_table(RunFolder(folder).predictions(label)).to_pydict()
    rows: dict[str, list[list[float]]] = {}
    for split, values in zip(table["split"], table["logits"], strict=True):
        rows.setdefault(split, []).append(values)
    return {split: torch.tensor(values) for split, values in rows.items()}


def test_alpha_zero_and_one_give_exactly_the_zero_shot_and_the_tuned_predictions(
    toy_config: Config, config: TrialConfig, run: Path, tmp_path: Path
) -> None:
    train(toy_config({"algorithm": "zero_shot"}), 0, workdir=tmp_path)
    zero_shot, tuned = logits(tmp_path, "unmerged"), logits(run, "unmerged")
    first, middle, last = (logits(run, f"wise_ft@{alpha}") for alpha in (0, 0.5, 1))
    for split in zero_shot:
        assert torch.equal(first[split], zero_shot[split])
        assert torch.equal(last[split], tuned[split])
        assert not torch.equal(middle[split], tuned[split])
    result = read_result(run, config)
    assert result.merges["wise_ft@1"]["metrics"] == result.metrics


def test_end_points_cost_no_forward_pass(
    config: TrialConfig, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [RunFolder(run).predictions(label) for label in ("unmerged", "wise_ft@1")]
    before = {file: file.read_bytes() for file in run.glob("evaluations/*/*")}

    def counts(teacher: Teacher, classifiers: Sequence[Classifier], name: str) -> tuple[int, int]:
        return len(teacher.splits[name]), len({*map(id, classifiers)})

    passes = watched(monkeypatch, Teacher, "_encode_images", counts)
    for file in before:
        file.unlink()
    litter = files[0].with_name(".predictions.parquet.abc")
    litter.write_bytes(b"of a process that was killed")
    finish(run, config, 0)
    assert passes == [(6, 2), (12, 2), (9, 2), (6, 2)]
    assert {file: file.read_bytes() for file in run.glob("evaluations/*/*")} == before
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not litter.exists()


def test_an_evaluation_that_breaks_off_is_not_taken_for_one(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Teacher, __: Sequence[Classifier], name: str) -> None:
        if name == "ood/pale":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        watched(patch, Teacher, "encode", broken)
        with pytest.raises(KeyboardInterrupt):
            train(toy_config(), 0, workdir=tmp_path)
    assert not list(tmp_path.glob("evaluations/*/*"))
    assert not is_complete(tmp_path, toy_config())
    finish(tmp_path, toy_config(), 0)
    assert is_complete(tmp_path, toy_config())


def test_the_zero_shot_row_is_that_of_its_classifier(toy_config: Config, tmp_path: Path) -> None:
    config = toy_config({"algorithm": "zero_shot", "merges": ENDS})
    result = trained(config, tmp_path)
    setup = open_setup(config)
    test, transform = setup.data.id_test, setup.teacher.transform
    views = test.views(range(len(test)), transform=transform, seed=None, epoch=0)
    with torch.no_grad():
        predicted = setup.teacher.classifier(transform.normalise(views)).argmax(dim=1)
    assert result.metrics["id/test/top1"] == float((predicted == test.labels).double().mean())
    assert (result.metrics["gain/ood/top1"], result.seed, result.merges) == (0, None, {})
    assert not (tmp_path / "weights").exists()


def test_metrics_have_the_names_of_the_design(
    toy_config: Config, config: TrialConfig, run: Path, tmp_path: Path
) -> None:
    result = read_result(run, config)
    splits = ("id/val", "id/test", "ood/dark", "ood/pale")
    four = ("top1", "nll", "ece", "brier")
    expected = {f"{split}/{metric}" for split in (*splits, "ood/mean") for metric in four}
    expected |= {"gap/top1", "hmean/top1", "gain/ood/top1"}
    probed = {f"context/{split}/{metric}" for split in splits for metric in ("kl", "entropy")}
    assert set(result.metrics) == expected | probed
    assert (result.facts["family"], result.facts["contexts"]) == ("image_folder v1", "simple")
    assert result.facts["images"]["ood/pale"] == 6
    assert result.facts["revision"] == f"{TRAINING_REVISION}.{MEASURING_REVISION}"
    assert result.facts["own_code"] is None
    assert set(result.facts["versions"]) == {"torch", "torchvision", "open_clip_torch"}
    shutil.copytree(run, tmp_path / "run")
    without = finish(tmp_path / "run", toy_config({"eval": {"context_probe": False}}), 0)
    assert set(without.metrics) == expected


def test_a_folder_without_a_run_is_refused(config: TrialConfig, run: Path, tmp_path: Path) -> None:
    refused("holds no run", finish, tmp_path, config, 0)
    shutil.copytree(run, tmp_path / "run")
    for name in ("trained.json", "evaluations/unmerged/metrics.json"):
        (tmp_path / "run" / name).unlink()
    assert not is_complete(tmp_path / "run", config)
    refused("not trained to its end", finish, tmp_path / "run", config, 0)
