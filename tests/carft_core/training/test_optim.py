"""How long a run is, its rate and its decay, and the optimisers: SAM and SPD step by step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import Source, Split
from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.carft_core.models.teacher import to_views
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import own_code_of
from carft_sweep.carft_core.training.loop import Run
from carft_sweep.carft_core.training.optim import (
    OPTIMISERS,
    Group,
    OptimConfig,
    Optimiser,
    Schedule,
    decay_groups,
    freeze_all_but,
    learning_rate,
    schedule_of,
    warmup_steps,
)
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, same, weights


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


def schedule(*, balanced: bool = False, **optim: int | None) -> Schedule:
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
    for epochs in (2, None):
        with pytest.raises(InvalidConfig, match="steps_per_epoch needs steps"):
            schedule(steps_per_epoch=3, epochs=epochs)


RHO = 0.2


class WrittenOut:
    """SAM with AdamW from their papers: Foret et al. 2021, algorithm 1 and equation 2 with p = 2,
    and Loshchilov and Hutter 2019, algorithm 2."""

    def __init__(self, parameters: list[nn.Parameter], decays: list[float], rho: float) -> None:
        self.parameters, self.decays, self.rho = parameters, decays, rho
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]
        self.t = 0

    def step(self, gradients: Callable[[], list[Tensor]], lr: float) -> None:
        g = gradients()
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in g))
        weights = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for p, gradient in zip(self.parameters, g, strict=True):
                p.copy_(p + self.rho * gradient / norm)
        sharp = gradients()
        self.t += 1
        with torch.no_grad():
            for i, (p, w, gradient) in enumerate(zip(self.parameters, weights, sharp, strict=True)):
                self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
                self.second[i] = 0.999 * self.second[i] + 0.001 * gradient * gradient
                m = self.first[i] / (1 - 0.9**self.t)
                v = self.second[i] / (1 - 0.999**self.t)
                p.copy_(w - lr * (m / (v.sqrt() + 1e-8) + self.decays[i] * w))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn(6, 5, generator=generator, dtype=torch.float64),
        torch.randint(3, (6,), generator=generator),
    )


def stepped(model: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
    """Take steps as the loop does, with a rate of each step's own."""
    for step in steps:
        images, labels = data(step)

        def closure(images: Tensor = images, labels: Tensor = labels) -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return loss.detach()

        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (step + 1)
        optimiser.step(closure)  # type: ignore[arg-type]


def made(name: str, model: nn.Module, **fields: Any) -> torch.optim.Optimizer:
    optim = OptimConfig(name=name, lr=1e-2, **fields)
    return OPTIMISERS[name].make(decay_groups(model.named_parameters(), optim), optim)


def gradients_of(model: nn.Module, step: int) -> list[Tensor]:
    images, labels = data(step)
    loss = F.cross_entropy(model(images), labels)
    return list(torch.autograd.grad(loss, [*model.parameters()]))


def check_close(ours: nn.Module, theirs: nn.Module) -> None:
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-12)


def test_sam_is_its_two_steps_with_decay_and_a_rate_that_changes() -> None:
    ours, theirs = network(), network()
    optimiser = made("sam", ours, rho=RHO, weight_decay=0.3, decay_norms_and_biases=False)
    parameters = list(theirs.parameters())
    written = WrittenOut(parameters, [0.3 if p.ndim > 1 else 0.0 for p in parameters], RHO)
    for step in range(5):
        stepped(ours, optimiser, range(step, step + 1))
        written.step(partial(gradients_of, theirs, step), 1e-2 * (step + 1))
        check_close(ours, theirs)


def test_spd_is_adams_step_and_the_projection_written_out() -> None:
    ours, theirs = network(), network()
    optimiser = made("spd", ours, weight_decay=0.3)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    starts = [p.detach().numpy().copy() for p in theirs.parameters()]
    projected = 0
    for step in range(40):
        stepped(ours, optimiser, range(step, step + 1))
        gradients = gradients_of(theirs, step)
        before = [p.detach().numpy().copy() for p in theirs.parameters()]
        for p, gradient in zip(theirs.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        adam.param_groups[0]["lr"] = 1e-2 * (step + 1)
        adam.step()
        tensors = zip(theirs.parameters(), gradients, before, starts, strict=True)
        for p, gradient, old, start in tensors:
            new = p.detach().numpy()  # shares its memory
            now, earlier = (np.linalg.norm(parameter - start) for parameter in (new, old))
            if np.sum(gradient.numpy() * (old - start)) > 0 and now > earlier:
                new -= 0.3 * (now - earlier) / now * (new - start)
                projected += 1
        check_close(ours, theirs)
    assert projected > 10


@pytest.mark.usefixtures("registries")
def test_an_optimiser_of_ones_own_is_taken_by_its_name(toy_config: Config) -> None:
    with pytest.raises(InvalidConfig, match=r"optim\.name: .*unknown optimiser 'adagrad'.*adamw"):
        toy_config({"optim.name": "adagrad"})

    def make(groups: list[Group], optim: OptimConfig) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(groups, lr=optim.lr)

    OPTIMISERS.register(Optimiser("adagrad", "Adagrad", make))
    config = toy_config({"optim.name": "adagrad", "algorithm": "fine_tune"})
    groups = decay_groups(network().named_parameters(), config.optim)
    assert isinstance(config.algorithm.optimiser(groups, config.optim), torch.optim.Adagrad)
    assert own_code_of(config) is not None
    assert own_code_of(toy_config({"optim.name": "adagrad", "algorithm": "zero_shot"})) is None
    refused("it must be of the class Optimiser", OPTIMISERS.register, make)


@pytest.mark.parametrize(("fields", "rho"), [({}, 0.05), ({"rho": 0.7}, 0.7)])
def test_sam_looks_as_far_as_rho_and_by_default_0_05(fields: dict[str, float], rho: float) -> None:
    model = network()
    optimiser = made("sam", model, **fields)
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        for p, gradient in zip(model.parameters(), gradients_of(model, 0), strict=True):
            p.grad = gradient
        seen.append([p.detach().clone() for p in model.parameters()])
        return torch.zeros(())

    optimiser.step(closure)  # type: ignore[arg-type]
    moved = [(b - a).square().sum() for a, b in zip(*seen, strict=True)]
    assert float(torch.stack(moved).sum().sqrt()) == pytest.approx(rho, rel=1e-6)


def test_sam_without_a_gradient_leaves_the_weights_and_needs_a_closure() -> None:
    model = network()
    optimiser = made("sam", model, weight_decay=0.0)
    before = copy.deepcopy(model.state_dict())

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = 0.0 * sum(p.sum() for p in model.parameters())  # type: ignore[assignment]
        loss.backward()
        return loss.detach()

    optimiser.step(closure)  # type: ignore[arg-type]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="closure"):
        optimiser.step()


def test_sgd_is_momentum_with_the_decay_in_the_gradient() -> None:
    ours, theirs = network(), network()
    optimiser = made("sgd", ours, weight_decay=0.3)
    parameters = list(theirs.parameters())
    momentum = [torch.zeros_like(p) for p in parameters]
    for step in range(4):
        stepped(ours, optimiser, range(step, step + 1))
        gradients = gradients_of(theirs, step)
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                momentum[i] = 0.9 * momentum[i] + g + 0.3 * p
                p.sub_(1e-2 * (step + 1) * momentum[i])
        check_close(ours, theirs)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_goes_on_from_its_state_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, half, again = network(), network(), network()
    stepped(whole, made(name, whole, weight_decay=0.1), range(6))
    assert not torch.equal(next(half.parameters()), next(whole.parameters()))
    optimiser = made(name, half, weight_decay=0.1)
    stepped(half, optimiser, range(3))
    torch.save((half.state_dict(), optimiser.state_dict()), tmp_path / "x.pt")
    model, state = torch.load(tmp_path / "x.pt", weights_only=True)
    again.load_state_dict(model)
    optimiser = made(name, again, weight_decay=0.1)
    optimiser.load_state_dict(state)
    stepped(again, optimiser, range(3, 6))
    assert same(whole.state_dict(), again.state_dict())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_groups_keep_their_own_scale_of_the_rate_and_decay(name: str) -> None:
    model = network()
    optim = OptimConfig(name=name, lr=1e-2)
    groups: list[Group] = [
        *decay_groups(model[0].named_parameters(), optim, lr_scale=0.0),  # type: ignore[index]
        *decay_groups(model[2].named_parameters(), optim),  # type: ignore[index]
    ]
    optimiser = OPTIMISERS[name].make(groups, optim)
    assert [group["lr_scale"] for group in optimiser.param_groups] == [0.0, 1.0]
    assert {group["weight_decay"] for group in optimiser.param_groups} == {0.1}


def test_a_run_with_sam_is_its_clipped_scheduled_steps(toy_config: Config, tmp_path: Path) -> None:
    fields = {"name": "sam", "rho": RHO, "lr": 1e-3, "weight_decay": 0.3, "clip": 0.5}
    optim = {**fields, "epochs": 2, "batch_size": 8, "micro_batch": 3, "warmup": 2}
    config = toy_config({"algorithm": "fine_tune", "optim": optim})
    setup = open_setup(config)
    run = Run(config, 0, RunFolder(tmp_path), setup)
    losses, size = [], 0.0
    theirs = setup.teacher.new_classifier()
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    written = WrittenOut(parameters, [0.3] * len(parameters), RHO)
    warmup = warmup_steps(2, run.steps)
    for step, loaded in enumerate(setup.teacher.loader.steps(run.batches, range(run.steps))):
        images = to_views(loaded.images, setup.teacher.transform, setup.teacher.device)

        def gradients(images: Tensor = images, labels: Tensor = loaded.labels) -> list[Tensor]:
            nonlocal size
            loss = F.cross_entropy(theirs(images), labels)
            losses.append(float(loss.detach()))
            whole = torch.autograd.grad(loss, parameters)
            size = float(torch.stack([gradient.norm() for gradient in whole]).norm())
            return [gradient * min(1.0, 0.5 / (size + 1e-6)) for gradient in whole]

        written.step(gradients, learning_rate(step, steps=run.steps, warmup=warmup, peak=1e-3))
        assert size > 0.5  # else nothing is clipped
    history = [report.metrics for report in run.epochs()]
    own = weights(tmp_path)
    start, end = setup.teacher.classifier.state_dict(), theirs.state_dict()
    # Not each by itself: a key's bias has no gradient but rounding, of which Adam takes the sign.
    moved = torch.cat([(end[key] - start[key]).flatten() for key in end])
    apart = torch.cat([(end[key] - own[key]).flatten() for key in end])
    assert float(apart.norm()) < 0.002 * float(moved.norm())
    first = [losses[2 * step] for step in range(len(losses) // 4)]
    assert history[1]["train/first/loss"] == pytest.approx(losses[0], rel=1e-5)
    assert min(first) <= history[1]["train/loss"] <= max(first)


def test_rho_is_for_sam_alone(toy_config: Config) -> None:
    for name in ("adamw", "sgd"):
        with pytest.raises(InvalidConfig, match=f"rho is for sam, and the optimiser is {name}"):
            toy_config({"optim.name": name, "optim.rho": 0.1})
    for rho in (0.0, -1.0, math.inf):
        with pytest.raises(InvalidConfig, match=r"optim\.rho"):
            toy_config({"optim.name": "sam", "optim.rho": rho})
    with pytest.raises(InvalidConfig, match=r"optim\.name"):
        toy_config({"optim.name": "adam"})
