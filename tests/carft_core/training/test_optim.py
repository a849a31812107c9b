"""How long a run is, the learning rate against WiSE-FT's schedule, and who is decayed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import Source, Split
from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.carft_core.training.optim import (
    OptimConfig,
    Schedule,
    decay_groups,
    freeze_all_but,
    learning_rate,
    schedule_of,
    warmup_steps,
)


def test_the_rate_warms_up_linearly_and_ends_near_zero() -> None:
    rates = [learning_rate(t, steps=10, warmup=2, peak=1.0) for t in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.5 * (1 + math.cos(math.pi * 4 / 8)))
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert rates[2:] == sorted(rates[2:], reverse=True)
    # Below one it is a fraction of the steps.
    assert [warmup_steps(warmup, 100) for warmup in (0.1, 0.0, 1.0, 30.0)] == [10, 0, 1, 30]


@given(steps=st.integers(1, 500), warmup=st.floats(0, 600))
def test_the_rate_stays_in_range_for_any_warm_up(steps: int, warmup: float) -> None:
    warm = warmup_steps(warmup, steps)
    assert 0 <= warm < steps
    rates = [learning_rate(t, steps=steps, warmup=warm, peak=2.0) for t in range(steps)]
    assert 0 <= min(rates) <= max(rates) <= 2.0


def test_norms_and_biases_are_decayed_as_in_wise_ft_unless_asked_otherwise() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    everything = decay_groups(model.named_parameters(), OptimConfig(weight_decay=0.1))
    assert [group["weight_decay"] for group in everything] == [0.1]
    optim = OptimConfig(weight_decay=0.1, decay_norms_and_biases=False)
    groups = decay_groups(model.named_parameters(), optim, lr_scale=0.5)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (3, 0)]
    assert {group["lr_scale"] for group in groups} == {0.5}


def test_what_is_in_no_group_is_frozen_and_what_is_frozen_in_none() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    groups = decay_groups(model[1].named_parameters(prefix="1"), OptimConfig())
    assert sum(len(group["params"]) for group in groups) == 1
    assert freeze_all_but(model, groups) == [model[1].weight]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["1.weight"]


TRAIN = Split(
    ids=tuple("abcdefghij"),
    labels=torch.zeros(10, dtype=torch.int64),
    source=Source(),
    groups=("one",) * 7 + ("two",) * 3,
)


def schedule(*, balanced: bool = False, **optim: int) -> Schedule:
    data = {"family": "icon_shift", "balanced": balanced}
    config = trial_config({"data": data, "algorithm": "fine_tune", "optim": optim})
    return schedule_of(config.optim, TRAIN, balanced=config.data.balanced)


def test_an_epoch_is_a_pass_and_steps_cut_the_last_one() -> None:
    plan = schedule(epochs=3, batch_size=4)
    assert (plan.steps, plan.per_epoch, plan.epochs) == (9, 3, 3)
    assert [plan.of_epoch(epoch) for epoch in (1, 2, 3)] == [range(3), range(3, 6), range(6, 9)]
    plan = schedule(steps=4, batch_size=4)
    assert (plan.steps, plan.epochs, plan.of_epoch(2)) == (4, 2, range(3, 4))
    plan = schedule(balanced=True, epochs=2, batch_size=2)  # as many of each group
    assert (plan.per_epoch, plan.steps) == (3, 6)


def test_steps_per_epoch_say_what_an_epoch_is_and_need_the_number_of_all_steps() -> None:
    plan = schedule(steps=5000, steps_per_epoch=300, batch_size=4)
    assert (plan.steps, plan.per_epoch, plan.epochs) == (5000, 300, 17)
    assert (plan.of_epoch(1), plan.of_epoch(17)) == (range(300), range(4800, 5000))
    assert schedule(steps=3, steps_per_epoch=300).of_epoch(1) == range(3)
    with pytest.raises(InvalidConfig, match="steps_per_epoch needs steps"):
        schedule(steps_per_epoch=3, epochs=2)
    with pytest.raises(InvalidConfig, match="steps_per_epoch needs steps"):
        schedule(steps_per_epoch=3)
