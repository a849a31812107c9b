"""The space: each law is scipy's, Optuna stores what was drawn, a grid has each point once."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from decimal import Decimal
from typing import Any

import optuna
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from scipy.stats import qmc

from carft_sweep.sweeps.space import distributions, points
from carft_sweep.sweeps.space.distributions import Categorical, Distribution, LogUniform, Uniform
from carft_sweep.sweeps.space.points import draw_point, grid, grid_size, hashed, sobol
from carft_sweep.sweeps.space.samplers import derived_seed, encode, optuna_distributions, suggest
from tests.sweeps.space.spaces import decode, dimensions, spaces

N = 2000
CONTINUOUS: dict[str, tuple[Distribution, Any]] = {
    "uniform": (Uniform("x", -2.0, 3.0), scipy.stats.uniform(-2, 5)),
    "log_uniform_values": (LogUniform("x", 1e-5, 1e-2), scipy.stats.loguniform(1e-5, 1e-2)),
}


def hashes(name: str = "x", seed: int = 0) -> list[float]:
    return [hashed(seed, point, name) for point in range(N)]


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_two_thousand_draws_follow_scipys_distribution(kind: str) -> None:
    dimension, expected = CONTINUOUS[kind]
    values = [dimension.quantile(u) for u in hashes()]
    assert scipy.stats.kstest(values, expected.cdf).pvalue > 0.05
    other_laws = [law for name, (_, law) in CONTINUOUS.items() if name != kind]
    assert all(scipy.stats.kstest(values, law.cdf).pvalue < 1e-6 for law in other_laws)


def test_a_law_with_a_step_is_the_law_rounded_to_it() -> None:
    exact = [LogUniform("x", 32, 256).quantile(u) for u in hashes()]
    nearest, below = (LogUniform("x", 32, 256, 8, down=down) for down in (False, True))
    values = [nearest.quantile(u) for u in hashes()]
    assert values == [8 * round(number / 8) for number in exact]
    assert all(type(value) is int for value in values)
    assert [below.quantile(u) for u in hashes()] == [8 * int(number / 8) for number in exact]


def test_steps_and_rounding_are_decimal_and_ties_go_to_the_even_step() -> None:
    tenths = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert Uniform("optim.warmup", 0.1, 0.7, 0.1).grid_values() == tenths
    assert [*(Uniform("optim.epochs", 2, 10, 4).grid_values() or ())] == [2, 6, 10]
    assert Uniform("optim.lr", 1e-5, 1e-2).grid_values() is None
    for value, q, expected in (
        *((0.26, 0.1, 0.3), (0.7000001, 0.1, 0.7), (12, 8, 16), (20, 8, 16)),
        *((2.5, 1, 2), (3.3, None, 3.3)),
    ):
        nearest = LogUniform("x", 0.1, 99, q).nearest(value)
        assert (nearest, type(nearest)) == (expected, type(expected))
    # A number that is a multiple but for its last bit loses no step.
    down = LogUniform("x", 0.5, 1.5, step=0.1, down=True)
    assert down.nearest(math.nextafter(1.5, 0)) == pytest.approx(1.5)


def test_each_step_and_each_choice_is_equally_likely() -> None:
    numbers = (Uniform("x", 2, 10, 4), Uniform("x", 0.1, 0.7, 0.1))
    for dimension in (*numbers, Categorical("x", ("a", "b", "c"))):
        counts = Counter(dimension.quantile(u) for u in hashes())
        assert set(counts) == {*(dimension.grid_values() or ())}
        assert scipy.stats.chisquare([*counts.values()]).pvalue > 0.05


@given(dimension=dimensions(), numbers=st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_a_draw_lies_inside_and_is_monotone(dimension: Any, numbers: list[float]) -> None:
    drawn_values = [dimension.quantile(u) for u in sorted(numbers)]
    if isinstance(dimension, Categorical):
        texts = list(map(distributions.canonical, dimension.values))  # False is not 0
        places = [texts.index(distributions.canonical(value)) for value in drawn_values]
        assert places == sorted(places)
        return
    low, high = (end for _, end in dimension.boundary_values())
    assert drawn_values == sorted(drawn_values)
    assert low <= drawn_values[0]
    assert drawn_values[-1] <= high
    if isinstance(dimension, LogUniform) and dimension.step is not None:
        step = Decimal(repr(dimension.step))
        assert all(Decimal(repr(value)) % step == 0 for value in drawn_values)


def test_a_number_by_hash_and_the_seed_of_a_point_never_change() -> None:
    assert derived_seed(0, 0) == 0xAC72368A  # sha256("0:0"), first four bytes
    seeds = {derived_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
    # The first 52 bits of sha256("0:0:x"), and a half, over 2**52.
    assert hashed(0, 0, "x") == (0xEF1AD109346A6 + 0.5) / 2**52
    assert len({hashed(s, p, n) for s in range(9) for p in range(9) for n in "abc"}) == 243
    assert scipy.stats.kstest(hashes(), "uniform").pvalue > 0.05
    assert abs(scipy.stats.pearsonr(hashes("x"), hashes("y")).statistic) < 0.05


def test_one_more_parameter_does_not_change_what_is_drawn_for_the_others() -> None:
    narrow = (Uniform("a", 0, 1), Uniform("c", 0, 1))
    wide = (Uniform("a", 0, 1), Uniform("b", 0, 1), Uniform("c", 0, 1))
    for point in range(5):
        short = draw_point(narrow, functools.partial(hashed, 3, point), {})
        long = draw_point(wide, functools.partial(hashed, 3, point), {})
        assert short == {name: long[name] for name in "ac"}


def test_a_sobol_number_is_scipys_whichever_is_asked_first() -> None:
    sequence = qmc.Sobol(3, scramble=True, bits=30, seed=5).random(16)
    for point in (15, 0, 7):
        assert list(sobol(5, point, "abc").values()) == list(sequence[point])
    assert list(sobol(5, 0, "abc")) == ["a", "b", "c"]
    assert sobol(6, 0, "abc") != sobol(5, 0, "abc")
    assert sobol(0, 3, ()) == {}


def test_what_is_given_is_kept_and_decides_on_what_depends_on_it() -> None:
    when = (distributions.Condition("a", (2,)),)
    space = (Uniform("b", 0.0, 1.0, when=when), Categorical("a", (1, 2)))
    assert draw_point(space, lambda _: 0.25, {}) == {"a": 1}
    assert draw_point(space, lambda _: 0.25, {"a": 2}) == {"b": 0.25, "a": 2}
    assert draw_point(space, lambda _: 0.75, {"b": 0.1}) == {"b": 0.1, "a": 2}
    assert draw_point(space, lambda _: 0.25, {"b": 0.1}) == {"a": 1}


@given(space=spaces(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_what_optuna_stores_decodes_to_it(space: tuple[Distribution, ...], seed: int) -> None:
    point = draw_point(space, lambda name: hashed(seed, 0, name), {})
    stored = encode(space, point)
    laws = {name: optuna_distributions(space)[name] for name in stored}
    running = optuna.trial.TrialState.RUNNING
    trial = optuna.trial.create_trial(state=running, params=stored, distributions=laws)
    decoded = decode(space, trial.params)
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
    assert [*point] == [item.name for item in space if points.is_active(item, point)]


def value_of(point: dict[str, Any], dimension: Distribution) -> Any:
    return point[dimension.name]


@given(space=spaces(listed=True))
@settings(max_examples=60, deadline=None)
def test_a_grid_has_each_active_point_once_in_order(space: tuple[Distribution, ...]) -> None:
    axes = [item.grid_values() or () for item in space]
    names = [item.name for item in space]
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes)]
    active = [points.sample_point(space, functools.partial(value_of, point)) for point in every]
    assert list(map(repr, grid(space))) == [*dict.fromkeys(map(repr, active))]
    assert grid_size(space, 10_000) == len(grid(space))


def test_a_grid_is_counted_as_far_as_anybody_asks() -> None:
    wide = tuple(Uniform(name, 1, 1 << 60, 1) for name in "abcdefgh")
    assert grid_size(wide, 1000) == 1000
    with pytest.raises(ValueError, match="make a grid of more than 10000 points"):
        grid(wide)
