"""WiSE-FT and LiNeS: the line between two state dicts, and a weight for each layer."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from torch import nn

from carft_sweep.carft_core.algorithms.base import State
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.merges.lines import Lines, block_depths
from carft_sweep.carft_core.merges.logit_ensemble import LogitEnsemble
from carft_sweep.carft_core.merges.wise_ft import WiseFt
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import stem_and_blocks
from carft_sweep.carft_core.testing import built_in_teacher


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
    low, high = (
        {"w": torch.tensor([number], dtype=torch.float16)} for number in (1.0, 1.0009765625)
    )
    assert float(interpolate(low, high, 0.75)["w"]) == pytest.approx(1.0009765625), "in fp32"


def test_models_that_differ_are_refused_by_the_names_of_their_tensors() -> None:
    before, after = two_models()
    del before["2.weight"]
    before["0.bias"] = torch.zeros(7)
    with pytest.raises(RequestError, match=r"0\.bias, 2\.weight"):
        interpolate(before, after, 0.5)


@pytest.mark.parametrize("cls", [WiseFt, LogitEnsemble])
def test_points_are_named_and_stand_in_ascending_order(cls: type[WiseFt | LogitEnsemble]) -> None:
    points = [(point.label, point.step) for point in cls(alphas=(1.0, 0.25)).points()]
    assert points == [(f"{cls.name}@0.25", 250), (f"{cls.name}@1", 1000)]
    for alphas in ((), (0.5, 0.5), (0.5, 0.5001), (-0.1,), (1.5,), ("a",)):
        with pytest.raises(ValueError, match="alphas"):
            cls.model_validate({"alphas": alphas})


def test_a_vit_is_scaled_as_the_authors_code_does(teacher: Teacher) -> None:
    """Each tensor's offset, by the number in its name; outside of blocks by alpha."""
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
