"""The learning rate against WiSE-FT's schedule, and who is decayed."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from carft_sweep.carft_core.training.optim import (
    OPTIMISERS,
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
    assert all(
        0 <= learning_rate(t, steps=steps, warmup=warm, peak=2.0) <= 2.0 for t in range(steps)
    )


@pytest.mark.parametrize(("warmup", "expected"), [(0.1, 10), (0.0, 0), (1.0, 1), (30.0, 30)])
def test_a_warm_up_below_one_is_a_fraction_of_the_steps(warmup: float, expected: int) -> None:
    assert warmup_steps(warmup, 100) == expected


def test_norms_and_biases_are_decayed_as_in_wise_ft_unless_asked_otherwise() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    everything = decay_groups(model.named_parameters(), OptimConfig(weight_decay=0.1))
    assert [group["weight_decay"] for group in everything] == [0.1]
    optim = OptimConfig(weight_decay=0.1, decay_norms_and_biases=False)
    some = decay_groups(model.named_parameters(), optim, lr_scale=0.5)
    assert [(len(group["params"]), group["weight_decay"]) for group in some] == [(1, 0.1), (3, 0)]
    assert {group["lr_scale"] for group in some} == {0.5}


def test_a_frozen_parameter_is_left_out() -> None:
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    groups = decay_groups(model.named_parameters(), OptimConfig())
    assert sum(len(group["params"]) for group in groups) == 1


def test_what_is_in_no_group_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    groups = decay_groups(model[1].named_parameters(prefix="1"), OptimConfig())
    model[0].weight.requires_grad_(True)
    assert freeze_all_but(model, groups) == [model[1].weight]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["1.weight"]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimiser_steps_as_torchs_own(name: str) -> None:
    """AdamW with decoupled decay, SGD with a momentum of 0.9; `lr_scale` is left in the groups."""
    optim = OptimConfig(name=name, lr=0.1, weight_decay=0.01)  # type: ignore[arg-type]
    model = nn.Linear(3, 2)
    reference = deepcopy(model)
    groups = decay_groups(model.named_parameters(), optim, lr_scale=0.5)
    ours = OPTIMISERS[name](groups, optim)
    theirs: torch.optim.Optimizer
    if name == "adamw":
        theirs = torch.optim.AdamW(reference.parameters(), lr=0.1, weight_decay=0.01)
    else:
        theirs = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    assert [group["lr_scale"] for group in ours.param_groups] == [0.5]
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for of, optimiser in ((model, ours), (reference, theirs)):
            optimiser.zero_grad()
            of(inputs).square().mean().backward()
            optimiser.step()
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


@pytest.mark.parametrize("rho", [None, 0.3])
def test_sam_steps_by_the_gradient_at_the_sharpest_point_nearby(rho: float | None) -> None:
    """Against the formula in plain torch: `w + rho g / |g|` over all parameters together."""
    optim = OptimConfig(name="sam", lr=0.1, weight_decay=0.0, rho=rho)
    model = nn.Linear(3, 2)
    reference = deepcopy(model)
    ours = OPTIMISERS["sam"](decay_groups(model.named_parameters(), optim), optim)
    theirs = torch.optim.AdamW(reference.parameters(), lr=0.1, weight_decay=0.0)
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def loss_of(of: nn.Module) -> Tensor:
        return (of(inputs) - 1).pow(4).mean()

    for _ in range(3):

        def closure() -> Tensor:
            ours.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss.detach()

        here = loss_of(reference)
        said = float(ours.step(closure))  # type: ignore[arg-type]
        assert said == pytest.approx(float(here.detach()))
        parameters = list(reference.parameters())
        gradients = torch.autograd.grad(here, parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        before = [parameter.clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient * (rho or 0.05) / norm)
        theirs.zero_grad()
        loss_of(reference).backward()
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        theirs.step()
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


def test_sam_goes_on_from_its_state_and_needs_a_closure() -> None:
    optim = OptimConfig(name="sam", lr=0.1)

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, OPTIMISERS["sam"](decay_groups(model.named_parameters(), optim), optim)

    def step(model: nn.Module, optimiser: torch.optim.Optimizer, rate: float) -> None:
        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = (model(torch.ones(1, 3)) - 1).square().sum()
            loss.backward()
            return loss

        optimiser.param_groups[0]["lr"] = rate
        optimiser.step(closure)  # type: ignore[arg-type]

    model, optimiser = made()
    step(model, optimiser, 0.1)
    state = deepcopy(model.state_dict()), deepcopy(optimiser.state_dict())
    step(model, optimiser, 0.05)
    again, resumed = made()
    again.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    step(again, resumed, 0.05)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="sam needs a closure"):
        optimiser.step()
