"""A finished run: the end points of its merges, its metrics, and the zero-shot row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.folder import RunFolder, finish, is_complete
from carft_sweep.carft_core.runs.identity import MEASURING_REVISION, TRAINING_REVISION
from carft_sweep.carft_core.training.loop import train
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.trained import trained

Config = Callable[..., TrialConfig]
ENDS = [{"name": "wise_ft", "alphas": [0.0, 0.5, 1.0]}]


def logits(folder: Path, label: str) -> dict[str, torch.Tensor]:
    table = pq.read_table(RunFolder(folder).predictions(label)).to_pydict()
    rows: dict[str, list[list[float]]] = {}
    for split, values in zip(table["split"], table["logits"], strict=True):
        rows.setdefault(split, []).append(values)
    return {split: torch.tensor(values) for split, values in rows.items()}


def test_alpha_zero_and_one_give_exactly_the_zero_shot_and_the_tuned_predictions(
    toy_config: Config, tmp_path: Path
) -> None:
    train(toy_config({"algorithm": "zero_shot"}), 0, workdir=tmp_path / "zs")
    result = trained(toy_config({"merges": ENDS}), tmp_path / "car")
    zero_shot, tuned = logits(tmp_path / "zs", "unmerged"), logits(tmp_path / "car", "unmerged")
    first, last = logits(tmp_path / "car", "wise_ft@0"), logits(tmp_path / "car", "wise_ft@1")
    middle = logits(tmp_path / "car", "wise_ft@0.5")
    for split in zero_shot:
        assert torch.equal(first[split], zero_shot[split])
        assert torch.equal(last[split], tuned[split])
        assert not torch.equal(middle[split], tuned[split])
    assert result.merges["wise_ft@1"]["metrics"] == result.metrics


def test_end_points_cost_no_forward_pass(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four models two are encoded, in one pass over the images."""
    config = toy_config({"merges": ENDS})
    train(config, 0, workdir=tmp_path)
    files = [RunFolder(tmp_path).predictions(label) for label in ("unmerged", "wise_ft@1")]
    before = {file: file.read_bytes() for file in tmp_path.glob("evaluations/*/*")}
    passes: list[tuple[int, int]] = []
    encode = Teacher._encode_images

    def counted(self: Teacher, classifiers: Sequence[Classifier], name: str) -> list[Tensor]:
        passes.append((len(self.splits[name]), len({id(it) for it in classifiers})))
        return encode(self, classifiers, name)

    monkeypatch.setattr(Teacher, "_encode_images", counted)
    for file in before:
        file.unlink()
    litter = files[0].with_name(".predictions.parquet.abc")
    litter.write_bytes(b"of a process that was killed")
    finish(tmp_path, config, 0)
    assert passes == [(6, 2), (12, 2), (9, 2), (6, 2)]
    assert {file: file.read_bytes() for file in tmp_path.glob("evaluations/*/*")} == before
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not litter.exists()


def test_an_evaluation_that_breaks_off_is_not_taken_for_one(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Teacher.encode

    def broken(self: Teacher, classifiers: Sequence[Classifier], name: str) -> list[Tensor]:
        if name == "ood/pale":
            raise KeyboardInterrupt
        return encode(self, classifiers, name)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "encode", broken)
        with pytest.raises(KeyboardInterrupt):
            train(toy_config(), 0, workdir=tmp_path)
    assert not list(tmp_path.glob("evaluations/*/*"))
    assert not is_complete(tmp_path, toy_config())
    finish(tmp_path, toy_config(), 0)
    assert is_complete(tmp_path, toy_config())


def test_the_zero_shot_row_is_that_of_a_classifier_run_by_hand(
    toy_config: Config, tmp_path: Path
) -> None:
    config = toy_config({"algorithm": "zero_shot", "merges": ENDS})
    result = trained(config, tmp_path)
    setup = open_setup(config)
    test = setup.data.id_test
    images = setup.teacher.transform.normalise(
        test.views(range(len(test)), transform=setup.teacher.transform, seed=None, epoch=0)
    )
    with torch.no_grad():
        right = (setup.teacher.classifier(images).argmax(dim=1) == test.labels).double().mean()
    assert result.metrics["id/test/top1"] == pytest.approx(float(right))
    assert result.metrics["gain/ood/top1"] == 0
    assert result.seed is None
    assert result.merges == {}
    assert not (tmp_path / "weights").exists()


def test_metrics_have_the_names_of_the_design(toy_config: Config, tmp_path: Path) -> None:
    result = trained(toy_config(), tmp_path)
    expected = {
        f"{split}/{metric}"
        for split in ("id/val", "id/test", "ood/dark", "ood/pale", "ood/mean")
        for metric in ("top1", "nll", "ece", "brier")
    }
    expected |= {"gap/top1", "hmean/top1", "gain/ood/top1"}
    expected |= {
        f"context/{split}/{metric}"
        for split in ("id/val", "id/test", "ood/dark", "ood/pale")
        for metric in ("kl", "entropy")
    }
    assert set(result.metrics) == expected
    assert result.facts["family"] == "image_folder v1"
    assert result.facts["contexts"] == "simple"
    assert result.facts["images"]["ood/pale"] == 6
    assert result.facts["revision"] == f"{TRAINING_REVISION}.{MEASURING_REVISION}"
    assert result.facts["own_code"] is None
    assert set(result.facts["versions"]) == {"torch", "torchvision", "open_clip_torch"}


def test_without_the_probe_the_contexts_are_not_measured(
    toy_config: Config, tmp_path: Path
) -> None:
    result = trained(toy_config({"eval": {"context_probe": False}}), tmp_path)
    assert not any(name.startswith("context/") for name in result.metrics)


def test_a_folder_without_a_trained_run_is_not_finished(toy_config: Config, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no run"):
        finish(tmp_path, toy_config(), 0)
    train(toy_config(), 0, workdir=tmp_path)
    (tmp_path / "trained.json").unlink()
    (tmp_path / "evaluations" / "unmerged" / "metrics.json").unlink()
    assert not is_complete(tmp_path, toy_config())
    with pytest.raises(RequestError, match="not trained to its end"):
        finish(tmp_path, toy_config(), 0)
