"""The logit ensemble: the line between the outputs of two classifiers."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from carft_sweep.carft_core.merges.logit_ensemble import LogitEnsemble
from carft_sweep.carft_core.models import classifier
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.evaluations import finish
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.testing import batch_for
from carft_sweep.carft_core.training.loop import epochs
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.trained import Config


class Narrow(Classifier):
    """A tuned classifier of another shape: five features that are no CLIP's."""

    clip_features = False

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
        self.head = nn.Linear(5, 3)

    def features(self, images: Tensor) -> Tensor:
        out: Tensor = self.tower(images)
        return out

    def logits(self, features: Tensor) -> Tensor:
        out: Tensor = self.head(features)
        return out


def at(alpha: float, teacher: Teacher, tuned: Classifier) -> Classifier:
    merge = LogitEnsemble(alphas=(alpha,))
    return merge.model(merge.points()[0], teacher, tuned)


@torch.no_grad()
def test_it_interpolates_the_logits_of_any_classifier(teacher: Teacher) -> None:
    images, tuned = batch_for(teacher).images, Narrow().eval()
    ensemble = at(0.3, teacher, tuned).eval()
    expected = 0.7 * teacher.classifier(images) + 0.3 * tuned(images)
    assert torch.allclose(ensemble(images), expected, atol=1e-6)
    assert ensemble.features(images).shape == (len(images), 32 + 5)
    assert not ensemble.clip_features
    assert at(0, teacher, tuned) is teacher.classifier
    assert at(1, teacher, tuned) is tuned


def test_a_run_measures_the_sum_of_the_logits_that_it_stores_in_one_pass(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpolated logits follow from the features of both, whatever the number of alphas."""
    changes = {"optim.epochs": 1, "eval": {"logits": "always"}, "optim.lr": 0.01}
    merges = [{"name": "logit_ensemble", "alphas": [0, 0.25, 0.5, 1]}]
    config = toy_config({**changes, "merges": merges})
    assert all(True for _ in epochs(config, 0, workdir=tmp_path))
    images: list[int] = []
    outputs = classifier.tower_outputs

    def counting(tower: nn.Module, batch: Tensor) -> Tensor:
        images.append(len(batch))
        return outputs(tower, batch)

    monkeypatch.setattr(classifier, "tower_outputs", counting)
    setup, folder = open_setup(config), RunFolder(tmp_path)
    splits = setup.measured().items()
    cached = [
        len(split) for name, split in splits if setup.teacher.cached_features(name) is not None
    ]
    result = finish(tmp_path, config, 0)
    assert sum(images) == 2 * sum(len(split) for _, split in splits) - sum(cached)

    def logits(label: str, split: str) -> Tensor:
        table = pq.read_table(folder.predictions(label)).to_pylist()
        return torch.tensor([row["logits"] for row in table if row["split"] == split])

    # They are kept in half precision, of which a logit near 16 has steps of 0.016.
    for split in ("id/test", "ood/dark"):
        before, after = (logits(f"logit_ensemble@{alpha}", split) for alpha in (0, 1))
        assert not torch.allclose(before, after, atol=0.1)
        between = logits("logit_ensemble@0.25", split)
        assert torch.allclose(between, 0.75 * before + 0.25 * after, atol=0.02)
        assert torch.equal(after, logits("unmerged", split))
    measured = result.merges["logit_ensemble@0.25"]["metrics"]
    assert "id/test/top1" in measured
    assert not any(name.startswith("context/") for name in measured)
