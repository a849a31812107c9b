"""WiSE-FT, LiNeS and the logit ensemble: lines between two models, in weights and in outputs."""

from __future__ import annotations

import copy
from pathlib import Path

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from carft_sweep.carft_core.algorithms.base import State
from carft_sweep.carft_core.merges.lines import Lines, block_depths
from carft_sweep.carft_core.merges.logit_ensemble import LogitEnsemble
from carft_sweep.carft_core.merges.wise_ft import WiseFt
from carft_sweep.carft_core.models import classifier
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import stem_and_blocks
from carft_sweep.carft_core.runs.evaluations import finish
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.testing import batch_for, built_in_teacher
from carft_sweep.carft_core.training.loop import epochs
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.refusals import refused
from tests.carft_core.stand_ins import watched
from tests.carft_core.trained import Config


def two_models() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    before = copy.deepcopy(model.state_dict())
    model.train()(torch.randn(16, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return before, model.state_dict()


def interpolate(before: State, after: State, alpha: float) -> State:
    wise_ft = WiseFt(alphas=(alpha,))
    return wise_ft.state(wise_ft.points()[0], before, after)


def test_batch_norm_statistics_are_interpolated_and_counts_are_the_tuned_models() -> None:
    before, after = two_models()
    mixed = interpolate(before, after, 0.25)
    expected = 0.75 * before["1.running_mean"] + 0.25 * after["1.running_mean"]
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert torch.allclose(mixed["1.running_mean"], expected)
    assert mixed["1.num_batches_tracked"].dtype == torch.int64
    assert int(mixed["1.num_batches_tracked"]) == 1
    assert all(interpolate(before, after, 0.0)[k] is before[k] for k in before)
    assert all(interpolate(before, after, 1.0)[k] is after[k] for k in after)
    low, high = (torch.tensor([number], dtype=torch.float16) for number in (1.0, 1.0009765625))
    mixed = interpolate({"w": low}, {"w": high}, 0.75)
    assert float(mixed["w"]) == pytest.approx(1.0009765625), "in fp32"


def test_models_that_differ_are_refused_by_the_names_of_their_tensors() -> None:
    before, after = two_models()
    del before["2.weight"]
    before["0.bias"] = torch.zeros(7)
    refused(r"0\.bias, 2\.weight", interpolate, before, after, 0.5)


@pytest.mark.parametrize("cls", [WiseFt, LogitEnsemble])
def test_points_are_named_and_stand_in_ascending_order(cls: type[WiseFt | LogitEnsemble]) -> None:
    points = [(point.label, point.step) for point in cls(alphas=(1.0, 0.25)).points()]
    assert points == [(f"{cls.name}@0.25", 250), (f"{cls.name}@1", 1000)]
    for alphas in ((), (0.5, 0.5), (0.5, 0.5001), (-0.1,), (1.5,), ("a",)):
        with pytest.raises(ValueError, match="alphas"):
            cls.model_validate({"alphas": alphas})


def test_a_vit_is_scaled_as_the_authors_code_does(teacher: Teacher) -> None:
    zero_shot, tuned = teacher.classifier.state_dict(), teacher.new_classifier()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter))
    alpha, merge = 0.3, Lines(alphas=(0.3, 1))
    edited = merge.model(merge.points()[0], teacher, tuned).state_dict()
    blocks = len(stem_and_blocks(teacher.classifier.visual)[1])
    for name, after in tuned.state_dict().items():
        number = name.partition("resblocks.")[2].partition(".")[0]
        scale = alpha + (1 - alpha) * (int(number) / (blocks - 1) if number else 0)
        expected = after if name == "head.weight" else zero_shot[name]
        if name != "head.weight":
            expected = zero_shot[name] + scale * (after - zero_shot[name])
        torch.testing.assert_close(edited[name], expected)
    assert merge.model(merge.points()[1], teacher, tuned) is tuned
    with pytest.raises(ValueError, match="alphas must be above 0"):
        Lines(alphas=(0, 0.5))


def test_the_stages_of_a_convolutional_network_are_its_blocks() -> None:
    depths = block_depths(built_in_teacher().classifier.visual)
    assert sorted(set(depths.values())) == [0, 1 / 3, 2 / 3, 1]
    assert depths["visual.trunk.stages.3.downsample.1.weight"] == 1
    assert "visual.trunk.stem.0.weight" not in depths
    resnet = open_clip.modified_resnet.ModifiedResNet((1, 1, 1, 1), 8, 2, image_size=32, width=8)
    assert block_depths(resnet)["visual.layer2.0.conv1.weight"] == 1 / 3


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
    images = watched(monkeypatch, classifier, "tower_outputs", lambda _, batch: len(batch))
    setup, folder = open_setup(config), RunFolder(tmp_path)
    splits = setup.measured().items()
    done = [len(split) for name, split in splits if setup.teacher.cached_features(name) is not None]
    result = finish(tmp_path, config, 0)
    assert sum(images) == 2 * sum(len(split) for _, split in splits) - sum(done)

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
