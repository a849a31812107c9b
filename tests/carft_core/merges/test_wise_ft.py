"""WiSE-FT: the line between two state dicts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from carft_sweep.carft_core.algorithms.base import State
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.merges.logit_ensemble import LogitEnsemble
from carft_sweep.carft_core.merges.wise_ft import WiseFt


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


def test_alpha_zero_and_one_are_the_end_points_themselves() -> None:
    before, after = two_models()
    assert all(interpolate(before, after, 0.0)[k] is before[k] for k in before)
    assert all(interpolate(before, after, 1.0)[k] is after[k] for k in after)


def test_batch_norm_statistics_are_interpolated_and_counts_are_the_tuned_models() -> None:
    before, after = two_models()
    mixed = interpolate(before, after, 0.25)
    expected = 0.75 * before["1.running_mean"] + 0.25 * after["1.running_mean"]
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert torch.allclose(mixed["1.running_mean"], expected)
    assert mixed["1.num_batches_tracked"].dtype == torch.int64
    assert int(mixed["1.num_batches_tracked"]) == 1


def test_half_precision_weights_are_merged_in_fp32() -> None:
    before = {"w": torch.tensor([1.0], dtype=torch.float16)}
    after = {"w": torch.tensor([1.0009765625], dtype=torch.float16)}
    assert float(interpolate(before, after, 0.75)["w"]) == pytest.approx(1.0009765625)


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
