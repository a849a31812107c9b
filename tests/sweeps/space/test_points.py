"""The space: what Optuna stores means what was drawn, and a grid has each point once, in order."""

from __future__ import annotations

import graphlib
import itertools
import json
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler

from carft_sweep.sweeps.space.distributions import (
    Categorical,
    Condition,
    Distribution,
    LogUniform,
    Uniform,
)
from carft_sweep.sweeps.space.points import (
    distinct,
    draw_point,
    grid,
    grid_size,
    hashed,
    is_active,
    sample_point,
    topological_order,
)
from carft_sweep.sweeps.space.samplers import (
    derived_seed,
    encode,
    optuna_distributions,
    sampler,
    suggest,
)
from tests.sweeps.space.spaces import decode, dimensions, spaces

SPACE: tuple[Distribution, ...] = (
    LogUniform("optim.lr", 1e-5, 1e-2),
    Uniform("optim.label_smoothing", 0.0, 0.3),
    Uniform("optim.warmup", 0.1, 0.7, 0.1),
    Uniform("optim.epochs", 2, 10, 4),
    Categorical("optim.clip", (None, 1.0, 5.0)),
    Categorical("merges", ([], [{"name": "wise_ft", "alphas": [0.5]}])),
)
A_IS_2 = (Condition("a", (2,)),)
ENDLESS = Uniform("optim.lr", 1e-5, 1e-2)


@given(space=spaces(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_what_optuna_stores_decodes_to_the_point_that_was_drawn(
    space: tuple[Distribution, ...], seed: int
) -> None:
    point = draw_point(space, lambda name: hashed(seed, 0, name), {})
    stored = encode(space, point)
    kept = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params=stored,
        distributions={name: optuna_distributions(space)[name] for name in stored},
    )
    decoded = decode(space, kept.params)
    assert decoded == point
    assert [type(value) for value in decoded.values()] == [type(v) for v in point.values()]


@given(dimension=dimensions(), u=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_a_distribution_is_storable_and_contains_every_value(dimension: Any, u: float) -> None:
    held = optuna_distributions([dimension])[dimension.name]
    text = optuna.distributions.distribution_to_json(held)
    assert optuna.distributions.json_to_distribution(text) == held
    drawn_value = draw_point([dimension], lambda _: u, {})
    for value in [*drawn_value.values(), *(dimension.grid_values() or ())]:
        internal = held.to_internal_repr(encode([dimension], {"x": value})["x"])
        assert held._contains(internal)


@given(space=spaces(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_suggested_point_has_what_is_active_and_decodes_from_what_optuna_kept(
    space: tuple[Distribution, ...], seed: int
) -> None:
    trial = optuna.create_study(sampler=RandomSampler(seed=seed)).ask()
    point = suggest(space, trial)
    assert decode(space, trial.params) == point
    assert [*point] == [item.name for item in space if is_active(item, point)]


def test_an_enqueued_point_is_suggested_as_it_is() -> None:
    space = (*SPACE[2:], Categorical("optim.lr", (1e-4, 3e-4)))
    made = optuna.create_study()
    for point in grid(space)[:50]:
        made.enqueue_trial(encode(space, point))
    assert [suggest(space, made.ask()) for _ in range(50)] == grid(space)[:50]


def test_steps_are_decimal_and_no_binary_noise() -> None:
    assert Uniform("optim.warmup", 0.1, 0.7, 0.1).grid_values() == (
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
    )
    assert [*(Uniform("optim.epochs", 2, 10, 4).grid_values() or ())] == [2, 6, 10]
    assert ENDLESS.grid_values() is None


def test_the_first_parameter_of_a_grid_is_the_slowest() -> None:
    space = (Categorical("optim.lr", (1e-4, 1e-3)), Categorical("optim.epochs", (1, 2)))
    assert [tuple(point.values()) for point in grid(space)] == [
        (1e-4, 1),
        (1e-4, 2),
        (1e-3, 1),
        (1e-3, 2),
    ]
    assert grid(()) == [{}]
    for made in (grid, lambda space: grid_size(space, 9)):
        with pytest.raises(ValueError, match="listed values"):
            made((ENDLESS,))


def test_a_grid_over_algorithms_has_each_point_once_with_its_own_fields() -> None:
    space = (
        Categorical("algorithm.kl_weight", (0.1, 1.0)),
        Categorical("algorithm.name", ("car_ft", "fine_tune", "zero_shot")),
        Categorical("optim.lr", (1e-4,)),
    )
    assert grid(space) == [
        {"algorithm.kl_weight": 0.1, "algorithm.name": "car_ft", "optim.lr": 1e-4},
        {"algorithm.name": "fine_tune", "optim.lr": 1e-4},
        {"algorithm.name": "zero_shot"},
        {"algorithm.kl_weight": 1.0, "algorithm.name": "car_ft", "optim.lr": 1e-4},
    ]


def test_a_conditional_grid_is_written_out_in_declared_order() -> None:
    space = (
        Categorical("c", ("x", "y"), when=(Condition("b", (True,)),)),
        Categorical("a", (1, 2)),
        Categorical("b", (False, True), when=A_IS_2),
    )
    assert grid(space) == [
        {"a": 1},
        {"a": 2, "b": False},
        {"c": "x", "a": 2, "b": True},
        {"c": "y", "a": 2, "b": True},
    ]
    assert [item.name for item in topological_order(space)] == ["a", "b", "c"]


@given(space=spaces(listed=True))
@settings(max_examples=60, deadline=None)
def test_a_grid_is_the_product_with_each_active_part_once_where_it_first_comes(
    space: tuple[Distribution, ...],
) -> None:
    axes = [item.grid_values() or () for item in space]
    names = [item.name for item in space]
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)]
    active = [sample_point(space, chosen(point)) for point in every]
    assert list(map(repr, grid(space))) == list(map(repr, distinct(active)))
    assert grid_size(space, 10_000) == len(grid(space))


def chosen(point: dict[str, Any]) -> Callable[[Distribution], Any]:
    return lambda dimension: point[dimension.name]


def test_a_grid_is_counted_as_far_as_anybody_asks() -> None:
    wide = tuple(Uniform(name, 1, 1 << 60, 1) for name in "abcdefgh")
    assert grid_size(wide, 1000) == 1000
    with pytest.raises(ValueError, match="make a grid of more than 10000 points"):
        grid(wide)


def test_a_circle_of_conditions_has_no_order() -> None:
    space = (
        Categorical("a", (1, 2), when=(Condition("b", (1,)),)),
        Categorical("b", (1, 2), when=(Condition("a", (1,)),)),
    )
    with pytest.raises(graphlib.CycleError):
        topological_order(space)


@given(space=spaces())
@settings(max_examples=50, deadline=None)
def test_a_space_is_plain_data(space: tuple[Distribution, ...]) -> None:
    plain = [item.to_dict() for item in space]
    assert json.loads(json.dumps(plain)) == plain
    assert [set(item.get("when", {})) for item in plain] == [
        {condition.name for condition in item.when} for item in space
    ]


def test_each_point_has_a_seed_of_its_own_that_never_changes() -> None:
    assert derived_seed(0, 0) == 0xAC72368A  # sha256("0:0"), first four bytes
    seeds = {derived_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_every_option_that_optuna_may_change_is_stated() -> None:
    tpe = sampler("tpe", 0, 3)
    assert isinstance(tpe, TPESampler)
    assert (tpe._multivariate, tpe._group, tpe._constant_liar) == (True, True, True)
    assert (tpe._n_startup_trials, tpe._n_ei_candidates) == (10, 24)
    gp = sampler("gp", 0, 3)
    assert isinstance(gp, GPSampler)
    assert (gp._n_startup_trials, gp._deterministic) == (10, False)
    assert isinstance(gp._independent_sampler, RandomSampler)
    nsga2 = sampler("nsga2", 0, 3)
    assert isinstance(nsga2, NSGAIISampler)
    assert nsga2.population_size == 20
    made: Any = nsga2._child_generation_strategy
    assert (made._crossover_prob, made._swapping_prob, made._mutation_prob) == (0.9, 0.5, None)


@pytest.mark.parametrize("method", ["tpe", "gp", "nsga2"])
def test_a_sampler_of_optunas_has_a_seed_of_its_point(method: Any) -> None:
    def first(point: int, seed: int = 0) -> float:
        made = optuna.create_study(sampler=sampler(method, seed, point))
        return float(suggest((ENDLESS,), made.ask())["optim.lr"])

    assert first(4) == first(4)
    assert len({first(0), first(1), first(0, seed=1)}) == 3
