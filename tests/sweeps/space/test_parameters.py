"""Parameters in W&B's words: each distribution means what it means there, or says what is wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.errors import InvalidConfig, RequestError
from carft_sweep.sweeps.space.distributions import (
    Categorical,
    FloatUniform,
    IntUniform,
    Parametric,
    SteppedUniform,
)
from carft_sweep.sweeps.space.parameters import DISTRIBUTIONS, KEYS, parse_parameter
from carft_sweep.sweeps.space.points import draw_point, hashed
from carft_sweep.sweeps.spec.settings import METHODS
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec


def read(data: object) -> tuple[Any, list[str]]:
    """The distribution, or what is wrong: `key: message`."""
    try:
        return parse_parameter("x", data), []
    except InvalidConfig as error:
        return None, [f"{'.'.join(map(str, it.path))}: {it.message}" for it in error.problems]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"value": 3}, Categorical("x", (3,))),
        ({"values": [1, 2]}, Categorical("x", (1, 2))),
        ({"values": [1, 2], "probabilities": [0.25, 0.75]}, Categorical("x", (1, 2), (0.25, 0.75))),
        ({"min": 1, "max": 4}, IntUniform("x", 1, 4)),
        ({"min": 1, "max": 4.0}, FloatUniform("x", 1.0, 4.0)),
        ({"min": 1, "max": 8, "q": 3}, IntUniform("x", 1, 7, 3)),
        ({"min": 0.1, "max": 0.5, "q": 0.1}, SteppedUniform("x", 0.1, 0.5, 0.1)),
        ({"distribution": "q_uniform", "min": 1, "max": 4}, IntUniform("x", 1, 4)),
        (
            {"distribution": "log_uniform_values", "min": 0.01, "max": 1},
            FloatUniform("x", 0.01, 1.0, log=True),
        ),
        (
            {"distribution": "log_uniform", "min": -2, "max": 0},
            FloatUniform("x", math.exp(-2), 1.0, log=True),
        ),
        (
            {"distribution": "inv_log_uniform", "min": 0, "max": 2},
            FloatUniform("x", math.exp(-2), 1.0, log=True),
        ),
        (
            {"distribution": "inv_log_uniform_values", "min": 0.01, "max": 1},
            FloatUniform("x", 0.01, 1.0, log=True),
        ),
        (
            {"distribution": "q_log_uniform_values", "min": 32, "max": 256, "q": 8},
            Parametric("x", "log_uniform_values", (32, 256), 8),
        ),
        (
            {"distribution": "q_log_uniform_values", "min": 8, "max": 45.5, "rounding": "down"},
            Parametric("x", "log_uniform_values", (8, 45.5), 1, down=True),
        ),
        (
            {"distribution": "q_log_uniform", "min": 0, "max": 3},
            Parametric("x", "log_uniform_values", (1.0, math.exp(3)), 1),
        ),
        ({"distribution": "normal"}, Parametric("x", "normal", (0, 1))),
        ({"distribution": "q_normal", "mu": 5, "q": 0.5}, Parametric("x", "normal", (5, 1), 0.5)),
        ({"distribution": "log_normal", "sigma": 2}, Parametric("x", "log_normal", (0, 2))),
        ({"distribution": "q_log_normal"}, Parametric("x", "log_normal", (0, 1), 1)),
        ({"distribution": "beta"}, Parametric("x", "beta", (1, 1))),
        ({"distribution": "q_beta", "a": 2, "q": 0.1}, Parametric("x", "beta", (2, 1), 0.1)),
    ],
    ids=str,
)
def test_a_distribution_of_wandb_is_read(data: dict[str, Any], expected: object) -> None:
    assert read(data) == (expected, [])


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_each_distribution_with_its_defaults_alone_is_read_or_says_what_it_needs(kind: str) -> None:
    fields = DISTRIBUTIONS[kind].model_fields
    needed = [key for key, field in fields.items() if field.is_required()]
    needed += ["probabilities"] if kind == "categorical_w_probabilities" else []
    given_keys: dict[str, Any] = {
        "value": 1,
        "values": [1, 2],
        "probabilities": [0.5, 0.5],
        "min": 1,
        "max": 9,
    }
    whole = {"distribution": kind, **{key: given_keys[key] for key in needed}}
    found, told = read(whole)
    assert told == []
    assert read(found.to_dict()) == (found, [])
    for key in needed:
        assert read({k: v for k, v in whole.items() if k != key})[1] == [f"{key}: is required"]
    assert {*fields} < {*KEYS}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "must be a mapping such as {values: [...]}, got [1, 2]"),
        (
            {"mu": 1},
            "mu: needs a distribution beside it: normal, log_normal, q_normal, q_log_normal",
        ),
        ({"distribution": "norma"}, "did you mean 'normal'?"),
        ({"distribution": "normal", "a": 1}, "a: does not go with normal, which has mu and sigma"),
        ({"distribution": "normal", "sigma": 0}, "sigma: must be greater than 0, got 0"),
        ({"distribution": "normal", "mu": "big"}, "mu: must be a number, got 'big'"),
        ({"distribution": "normal", "mu": 1e308, "sigma": 1e308}, "numbers that are too large"),
        ({"distribution": "log_normal", "mu": 699}, "exp(703) is too large"),
        ({"distribution": "beta", "b": -1}, "b: must be greater than 0, got -1"),
        ({"distribution": "q_beta", "q": 5}, "draws 0 and nothing else; use value"),
        ({"distribution": "q_normal", "q": 0}, "q: must be greater than 0, got 0"),
        ({"distribution": "q_normal", "q": 1e-300}, "q: is too small a step"),
        ({"distribution": "q_log_uniform", "min": 0, "max": 900}, "must be from -700 to 700"),
        (
            {"distribution": "q_log_uniform_values", "min": 1, "max": 9, "rounding": "up"},
            "rounding: must be 'nearest' or 'down', got 'up'",
        ),
        (
            {"distribution": "log_uniform_values", "min": 1, "max": 9, "rounding": "down"},
            "rounding: does not go with log_uniform_values, which has min and max",
        ),
        (
            {"distribution": "q_log_uniform_values", "min": 0, "max": 9},
            "min: must be greater than 0",
        ),
        ({"distribution": "inv_log_uniform_values", "min": -1, "max": 9}, "min: must be greater"),
        ({"distribution": "inv_log_uniform", "min": 2, "max": 1}, "min must be less than max"),
        (
            {"distribution": "categorical_w_probabilities", "values": [1]},
            "probabilities: is required",
        ),
        ({"values": [1, 2], "probabilities": [1]}, "one number for each of the 2 values, got 1"),
        ({"values": [1, 2], "probabilities": 0.5}, "must be a list with one number for each"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "probabilities: must sum to 1, got 1.1"),
        ({"values": [1, 2], "probabilities": [1.5, -0.5]}, "must be numbers from 0 to 1, got 1.5"),
        (
            {"values": [1, 1.0], "probabilities": [0.5, 0.5]},
            "values.1: 1.0 is in the list twice",
        ),
        ({"value": 1, "when": "x"}, "when: must be a mapping such as"),
        ({"value": 1, "when": {"a": []}}, "when.a: can never hold"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_parameter_is_told_where_it_is(data: object, message: str) -> None:
    found, told = read(data)
    assert found is None
    assert len(told) == 1
    assert message in told[0]


@given(
    data=st.dictionaries(
        st.sampled_from(KEYS),
        st.one_of(
            st.floats(),
            st.integers(),
            st.sampled_from([*DISTRIBUTIONS, None, True, {}, {"a": [1]}]),
            st.lists(st.floats(0, 1), max_size=3),
        ),
        max_size=5,
    )
)
@settings(max_examples=500, deadline=None)
def test_any_data_is_a_distribution_or_is_refused(data: dict[str, Any]) -> None:
    found, told = read(data)
    assert (found is None) == bool(told)
    if found is not None:
        assert read(found.to_dict())[1] == []


def load(file: Path, lr: object, decay: object, method: str) -> SweepSpec:
    parameters = {"optim.lr": lr, "optim.weight_decay": decay}
    data = {"name": "x", "method": method, "parameters": parameters}
    file.write_text(yaml.safe_dump({**data, "trial": {"algorithm": "car_ft"}}))
    return load_spec(file)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("data", "instead"),
    [
        ({"distribution": "normal", "mu": 5}, "uniform"),
        ({"distribution": "q_normal", "mu": 5}, "q_uniform"),
        ({"distribution": "log_normal"}, "log_uniform_values"),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 9}, "values"),
        ({"values": [0.1, 0.2], "probabilities": [0.5, 0.5]}, "values alone"),
    ],
)
def test_what_only_quantiles_draw_is_refused_with_other_methods_by_their_name(
    tmp_path: Path, method: str, data: dict[str, Any], instead: str
) -> None:
    file = tmp_path / "x.yaml"
    if method in ("random", "qmc"):
        load(file, {"value": 1e-4}, data, method)
        return
    with pytest.raises(RequestError) as caught:
        load(file, {"value": 1e-4}, data, method)
    told = str(caught.value)
    named = "values" if method == "grid" else instead
    assert f"by the methods random and qmc only, and this one is {method}; change it" in told
    assert told.endswith(f"or use {named}")
    assert len(told.splitlines()) == 1


def ranges(low: st.SearchStrategy[float], wide: st.SearchStrategy[float], *kinds: str) -> Any:
    return st.builds(
        lambda low, wide, kind: {"distribution": kind, "min": low, "max": low + wide},
        low,
        wide,
        st.sampled_from(kinds),
    )


FIT = st.one_of(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4, unique=True).map(
        lambda values: {"values": values}
    ),
    ranges(
        st.floats(1e-6, 0.1),
        st.floats(0.01, 0.5),
        "uniform",
        "log_uniform_values",
        "inv_log_uniform_values",
    ),
    ranges(st.floats(-12, -2), st.floats(0.1, 1.9), "log_uniform", "inv_log_uniform"),
    st.builds(
        lambda low, steps, step: {"min": low, "max": low + steps * step, "q": step},
        st.sampled_from([0.01, 0.1, 0.3]),
        st.integers(2, 9),
        st.sampled_from([0.01, 0.025, 0.1]),
    ),
    st.builds(
        lambda kind, mu, sigma, q: {
            "distribution": kind,
            "mu": mu,
            "sigma": sigma,
            **({"q": q} if "q_" in kind else {}),
        },
        st.sampled_from(["normal", "q_normal", "log_normal", "q_log_normal"]),
        st.floats(-1, 1),
        st.floats(0.01, 0.3),
        st.sampled_from([0.01, 0.1]),
    ),
    st.builds(
        lambda a, b: {"distribution": "beta", "a": a, "b": b}, st.floats(0.1, 9), st.floats(0.1, 9)
    ),
)


@given(lr=FIT, decay=FIT, seed=st.integers(0, 100))
@settings(max_examples=80, deadline=None)
def test_every_point_of_an_accepted_sweep_is_a_valid_config(
    tmp_path_factory: pytest.TempPathFactory, lr: Any, decay: Any, seed: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "space.yaml"
    try:
        spec = load(file, lr, decay, "random")
    except RequestError:
        return  # such as a normal law with negative rates
    for number in (lambda _: 0.0, lambda _: 1.0, lambda name: hashed(seed, 0, name)):
        point = draw_point(spec.parameters, number, {})
        config = spec.config_for(point)
        assert config.optim.lr == point["optim.lr"]
        assert config.optim.weight_decay == point["optim.weight_decay"]
