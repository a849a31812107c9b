"""The space: what Optuna stores means what was drawn, and a grid has each point once, in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler

from carft_sweep.sweeps.space.distributions import Distribution, Uniform
from carft_sweep.sweeps.space.points import (
    draw_point,
    grid,
    grid_size,
    hashed,
    is_active,
    sample_point,
)
from carft_sweep.sweeps.space.samplers import derived_seed, encode, optuna_distributions, suggest
from tests.sweeps.space.spaces import decode, dimensions, spaces

ENDLESS = Uniform("optim.lr", 1e-5, 1e-2)


@given(space=spaces(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_what_optuna_stores_decodes_to_it(space: tuple[Distribution, ...], seed: int) -> None:
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
@settings(max_examples=100, deadline=None)
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
def test_a_suggestion_has_what_is_active(space: tuple[Distribution, ...], seed: int) -> None:
    trial = optuna.create_study(sampler=RandomSampler(seed=seed)).ask()
    point = suggest(space, trial)
    assert decode(space, trial.params) == point
    assert [*point] == [item.name for item in space if is_active(item, point)]


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


@given(space=spaces(listed=True))
@settings(max_examples=60, deadline=None)
def test_a_grid_has_each_active_point_once_in_order(space: tuple[Distribution, ...]) -> None:
    axes = [item.grid_values() or () for item in space]
    names = [item.name for item in space]
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)]
    active = [sample_point(space, chosen(point)) for point in every]
    assert list(map(repr, grid(space))) == [*dict.fromkeys(map(repr, active))]
    assert grid_size(space, 10_000) == len(grid(space))


def chosen(point: dict[str, Any]) -> Callable[[Distribution], Any]:
    return lambda dimension: point[dimension.name]


def test_a_grid_is_counted_as_far_as_anybody_asks() -> None:
    wide = tuple(Uniform(name, 1, 1 << 60, 1) for name in "abcdefgh")
    assert grid_size(wide, 1000) == 1000
    with pytest.raises(ValueError, match="make a grid of more than 10000 points"):
        grid(wide)


def test_each_point_has_a_seed_of_its_own_that_never_changes() -> None:
    assert derived_seed(0, 0) == 0xAC72368A  # sha256("0:0"), first four bytes
    seeds = {derived_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
