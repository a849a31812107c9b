"""The learning rate against WiSE-FT's schedule, and who is decayed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from carft_sweep.carft_core.training.optim import (
    OptimConfig,
    decay_groups,
    freeze_all_but,
    learning_rate,
    warmup_steps,
)


def test_the_rate_warms_up_linearly_and_ends_near_zero() -> None:
    rates = [learning_rate(t, steps=10, warmup=2, peak=1.0) for t in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.5 * (1 + math.cos(math.pi * 4 / 8)))
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert rates[2:] == sorted(rates[2:], reverse=True)


@given(steps=st.integers(1, 500), warmup=st.floats(0, 600))
def test_the_rate_stays_in_range_for_any_warm_up(steps: int, warmup: float) -> None:
    warm = warmup_steps(warmup, steps)
    assert 0 <= warm < steps
    rates = [learning_rate(t, steps=steps, warmup=warm, peak=2.0) for t in range(steps)]
    assert 0 <= min(rates) <= max(rates) <= 2.0


def test_a_warm_up_below_one_is_a_fraction_of_the_steps() -> None:
    assert [warmup_steps(it, 100) for it in (0.1, 0.0, 1.0, 30.0)] == [10, 0, 1, 30]


def test_norms_and_biases_are_decayed_as_in_wise_ft_unless_asked_otherwise() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    everything = decay_groups(model.named_parameters(), OptimConfig(weight_decay=0.1))
    assert [group["weight_decay"] for group in everything] == [0.1]
    optim = OptimConfig(weight_decay=0.1, decay_norms_and_biases=False)
    some = decay_groups(model.named_parameters(), optim, lr_scale=0.5)
    assert [(len(group["params"]), group["weight_decay"]) for group in some] == [(1, 0.1), (3, 0)]
    assert {group["lr_scale"] for group in some} == {0.5}


def test_what_is_in_no_group_is_frozen_and_what_is_frozen_in_none() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    groups = decay_groups(model[1].named_parameters(prefix="1"), OptimConfig())
    assert sum(len(group["params"]) for group in groups) == 1
    assert freeze_all_but(model, groups) == [model[1].weight]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["1.weight"]
