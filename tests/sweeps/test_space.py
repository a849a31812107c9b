"""The space: Optuna draws valid points, stores them losslessly, and repeats none on a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import TPESampler

from sweeps.dimensions import Choice, Dimension, FloatRange, IntRange, StepRange, grid, listed
from sweeps.space import decode, derived_seed, distributions, encode, sampler, suggest
from sweeps.spec import SweepSpec, load_spec

MERGES: list[Any] = [[], [{"name": "wise_ft", "alphas": [0.5]}]]
SPACE: tuple[Dimension, ...] = (
    FloatRange("optim.lr", 1e-5, 1e-2, log=True),
    FloatRange("optim.label_smoothing", 0.0, 0.3),
    StepRange("optim.warmup", 0.1, 0.7, 0.1),
    IntRange("optim.epochs", 2, 10, 4),
    Choice("optim.clip", (None, 1.0, 5.0)),
    Choice("merges", tuple(MERGES)),
)


def study(
    space: tuple[Dimension, ...], method: Any, seed: int, trials: int
) -> list[dict[str, Any]]:
    """The points of a sweep whose sampler is made anew before each ask, as the ledger does."""
    found = []
    made = optuna.create_study(direction="maximize")
    for number in range(trials):
        made.sampler = sampler(method, seed, number)
        trial = made.ask()
        point = suggest(space, trial)
        found.append(point)
        made.tell(trial, -abs(float(point.get("optim.lr", 0.0)) - 3e-4))
    return found


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_every_drawn_point_lies_in_the_space(seed: int) -> None:
    for point in study(SPACE, "random", seed, 4):
        assert list(point) == [dimension.name for dimension in SPACE]
        assert 1e-5 <= point["optim.lr"] <= 1e-2
        assert 0.0 <= point["optim.label_smoothing"] <= 0.3
        assert point["optim.warmup"] in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
        assert point["optim.epochs"] in (2, 6, 10)
        assert point["optim.clip"] in (None, 1.0, 5.0)
        assert point["merges"] in MERGES


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_what_optuna_stores_decodes_to_what_was_suggested(seed: int) -> None:
    made = optuna.create_study(sampler=sampler("random", seed, 0))
    trial = made.ask()
    point = suggest(SPACE, trial)
    assert decode(SPACE, trial.params) == point
    assert decode(SPACE, encode(SPACE, point)) == point


def test_an_enqueued_point_is_suggested_as_it_is() -> None:
    space = (*SPACE[2:], Choice("optim.lr", (1e-4, 3e-4)))
    points = grid(space)
    made = optuna.create_study(sampler=sampler("grid", 0, 0))
    for point in points[:50]:
        made.enqueue_trial(encode(space, point))
    assert [suggest(space, made.ask()) for _ in points[:50]] == points[:50]


def test_the_distributions_are_storable_and_hold_their_own_grid() -> None:
    drawn = distributions(SPACE)
    storable = [optuna.distributions.distribution_to_json(item) for item in drawn.values()]
    assert [optuna.distributions.json_to_distribution(text) for text in storable] == [
        *drawn.values()
    ]
    for dimension in SPACE:
        for value in listed(dimension) or ():
            internal = drawn[dimension.name].to_internal_repr(
                encode([dimension], {dimension.name: value})[dimension.name]
            )
            assert drawn[dimension.name]._contains(internal)


def test_steps_are_decimal_and_no_binary_noise() -> None:
    assert listed(StepRange("optim.warmup", 0.1, 0.7, 0.1)) == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert listed(IntRange("optim.epochs", 2, 10, 4)) == (2, 6, 10)
    assert listed(FloatRange("optim.lr", 1e-5, 1e-3)) is None


def test_the_first_parameter_of_a_grid_is_the_slowest() -> None:
    space = (Choice("optim.lr", (1e-4, 1e-3)), Choice("optim.epochs", (1, 2)))
    assert [tuple(point.values()) for point in grid(space)] == [
        (1e-4, 1),
        (1e-4, 2),
        (1e-3, 1),
        (1e-3, 2),
    ]
    assert grid(()) == [{}]
    with pytest.raises(ValueError, match="listed values"):
        grid(SPACE)


def test_a_grid_over_algorithms_has_each_point_once_with_its_own_fields() -> None:
    space = (
        Choice("algorithm.kl_weight", (0.1, 1.0)),
        Choice("algorithm.name", ("car_ft", "fine_tune", "zero_shot")),
        Choice("optim.lr", (1e-4,)),
    )
    assert grid(space) == [
        {"algorithm.kl_weight": 0.1, "algorithm.name": "car_ft", "optim.lr": 1e-4},
        {"algorithm.name": "fine_tune", "optim.lr": 1e-4},
        {"algorithm.name": "zero_shot"},
        {"algorithm.kl_weight": 1.0, "algorithm.name": "car_ft", "optim.lr": 1e-4},
    ]


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_search_over_algorithms_draws_only_what_the_algorithm_has(method: str) -> None:
    space = (
        FloatRange("algorithm.kl_weight", 0.1, 3.0),
        Choice("algorithm.name", ("car_ft", "fine_tune")),
    )
    points = study(space, method, 0, 20)
    fields = {point["algorithm.name"]: set(point) for point in points}
    assert fields == {
        "car_ft": {"algorithm.name", "algorithm.kl_weight"},
        "fine_tune": {"algorithm.name"},
    }


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_the_same_seed_searches_the_same_points_and_another_seed_others(method: str) -> None:
    first = study(SPACE, method, 7, 14)
    assert study(SPACE, method, 7, 14) == first
    assert study(SPACE, method, 8, 14) != first
    assert len({point["optim.lr"] for point in first}) == 14


def test_each_trial_has_a_seed_of_its_own_that_never_changes() -> None:
    assert derived_seed(0, 0) == 0xAC72368A  # sha256("0:0"), first four bytes
    seeds = {derived_seed(seed, number) for seed in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_tpe_states_every_option_that_optuna_changes_between_releases() -> None:
    made = sampler("tpe", 0, 3)
    assert isinstance(made, TPESampler)
    assert (made._multivariate, made._group, made._constant_liar) == (True, True, True)
    assert made._n_startup_trials == 10


def test_tpe_finds_a_better_rate_than_its_random_start() -> None:
    space = (FloatRange("optim.lr", 1e-6, 1e-1, log=True),)
    miss = [abs(point["optim.lr"] - 3e-4) for point in study(space, "tpe", 1, 40)]
    assert min(miss[10:]) < min(miss[:10])


DISTRIBUTIONS = st.one_of(
    st.builds(
        lambda values: {"values": values},
        st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4, unique=True),
    ),
    st.builds(
        lambda low, wide, kind: {"distribution": kind, "min": low, "max": low + wide},
        st.floats(1e-6, 0.1),
        st.floats(0.01, 0.5),
        st.sampled_from(["uniform", "log_uniform_values"]),
    ),
    st.builds(
        lambda low, wide: {"distribution": "log_uniform", "min": low, "max": low + wide},
        st.floats(-12, -2),
        st.floats(0.1, 1.9),
    ),
    st.builds(
        lambda low, steps, step: {"min": low, "max": low + steps * step, "q": step},
        st.sampled_from([0.01, 0.1, 0.3]),
        st.integers(2, 9),
        st.sampled_from([0.01, 0.025, 0.1]),
    ),
)


@given(lr=DISTRIBUTIONS, decay=DISTRIBUTIONS, seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_every_point_of_an_accepted_sweep_is_a_valid_config(
    tmp_path_factory: pytest.TempPathFactory, lr: Any, decay: Any, seed: int
) -> None:
    spec = loaded(
        tmp_path_factory.getbasetemp() / "space.yaml",
        {
            "name": "x",
            "method": "tpe",
            "parameters": {"optim.lr": lr, "optim.weight_decay": decay},
            "trial": {"algorithm": "car_ft"},
        },
    )
    for point in study(spec.parameters, "tpe", seed, 2):
        config = spec.config_for(point)
        assert config.optim.lr == point["optim.lr"]
        assert config.optim.weight_decay == point["optim.weight_decay"]


def loaded(file: Path, data: dict[str, Any]) -> SweepSpec:
    file.write_text(yaml.safe_dump(data))
    return load_spec(file)
