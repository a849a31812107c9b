"""Parameters in W&B's words: each distribution means what it means there, or says what is wrong."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.errors import InvalidConfig, RequestError
from carft_sweep.sweeps.space.distributions import Categorical, LogUniform, Uniform
from carft_sweep.sweeps.space.parameters import DISTRIBUTIONS, INSTEAD, KEYS, parse_parameter
from carft_sweep.sweeps.space.points import draw_point, hashed
from carft_sweep.sweeps.spec.settings import METHODS
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec

Q_LOG = {"distribution": "q_log_uniform_values"}
Q_DOWN = {**Q_LOG, "rounding": "down"}


def read(data: object) -> tuple[Any, list[str]]:
    """The distribution, or what is wrong: `key: message`."""
    try:
        return parse_parameter("x", data), []
    except InvalidConfig as error:
        mistakes = error.problems
    return None, [f"{'.'.join(map(str, item.path))}: {item.message}" for item in mistakes]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"value": 3}, Categorical("x", (3,))),
        ({"values": [1, 2]}, Categorical("x", (1, 2))),
        ({"min": 1, "max": 4}, Uniform("x", 1, 4, 1)),
        ({"min": 1, "max": 4.0}, Uniform("x", 1.0, 4.0)),
        ({"min": 1, "max": 8, "q": 3}, Uniform("x", 1, 7, 3)),
        ({"distribution": "q_uniform", "min": 1, "max": 4}, Uniform("x", 1, 4, 1)),
        ({"distribution": "log_uniform_values", "min": 0.01, "max": 1}, LogUniform("x", 0.01, 1.0)),
        ({**Q_LOG, "min": 32, "max": 256, "q": 8}, LogUniform("x", 32, 256, 8)),
        ({**Q_DOWN, "min": 8, "max": 45.5}, LogUniform("x", 8, 45.5, 1, down=True)),
    ],
    ids=str,
)
def test_a_distribution_of_wandb_is_read(data: dict[str, Any], expected: object) -> None:
    assert read(data) == (expected, [])


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_each_distribution_with_its_defaults_alone_is_read_or_says_what_it_needs(kind: str) -> None:
    fields = DISTRIBUTIONS[kind].model_fields
    needed = [key for key, field in fields.items() if field.is_required()]
    given_keys: dict[str, Any] = {"value": 1, "values": [1, 2], "min": 1, "max": 9}
    whole = {"distribution": kind, **{key: given_keys[key] for key in needed}}
    dimension, mistakes = read(whole)
    assert mistakes == []
    assert read(dimension.to_dict()) == (dimension, [])
    for key in needed:
        lacking = {name: value for name, value in whole.items() if name != key}
        assert read(lacking)[1] == [f"{key}: is required"]
    assert {*fields} < {*KEYS}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "must be a mapping such as {values: [...]}, got [1, 2]"),
        ({"distribution": "unifrom", "min": 0, "max": 1}, "did you mean 'uniform'?"),
        ({"mu": 1}, "mu: unknown key 'mu'"),
        ({"min": 1, "max": 5, "q": 0}, "q: must be greater than 0, got 0"),
        ({**Q_LOG, "min": 1, "max": 9, "q": 1e-300}, "q: is too small a step"),
        (
            {"distribution": "log_uniform_values", "min": 1, "max": 9, "rounding": "down"},
            "rounding: unknown field 'rounding'; Known: distribution, max, min, when.",
        ),
        ({"values": [1, 1.0]}, "values.1: 1.0 is in the list twice"),
        ({"value": 1, "when": {"a": []}}, "when.a: can never hold"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_parameter_is_told_where_it_is(data: object, message: str) -> None:
    dimension, (mistake,) = read(data)
    assert dimension is None
    assert message in mistake


@given(
    data=st.dictionaries(
        st.sampled_from(KEYS),
        st.one_of(
            *(st.floats(), st.integers(), st.lists(st.floats(0, 1), max_size=3)),
            st.sampled_from([*DISTRIBUTIONS, None, True, {}, {"a": [1]}]),
        ),
        max_size=5,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_data_is_a_distribution_or_is_refused(data: dict[str, Any]) -> None:
    dimension, mistakes = read(data)
    assert (dimension is None) == bool(mistakes)
    if dimension is not None:
        assert read(dimension.to_dict())[1] == []


def load(file: Path, lr: object, decay: object, method: str) -> SweepSpec:
    parameters = {"optim.lr": lr, "optim.weight_decay": decay}
    data = {"name": "x", "method": method, "parameters": parameters}
    file.write_text(yaml.safe_dump({**data, "trial": {"algorithm": "car_ft"}}))
    return load_spec(file)


@pytest.mark.parametrize("kind", INSTEAD)
def test_a_distribution_of_wandb_that_is_not_here_is_answered_with_the_nearest(kind: str) -> None:
    _, (message,) = read({"distribution": kind, "min": 1, "max": 2})
    assert message == f"distribution: {kind} is not available; the nearest is {INSTEAD[kind]}"
    assert INSTEAD[kind] in DISTRIBUTIONS


@pytest.mark.parametrize("method", METHODS)
def test_every_method_but_grid_draws_every_distribution(tmp_path: Path, method: str) -> None:
    file, stepped = tmp_path / "x.yaml", {**Q_LOG, "min": 1, "max": 9}
    refuses = pytest.raises(RequestError, match="a grid takes values, or min, max and q")
    with refuses if method == "grid" else nullcontext():
        assert load(file, {"value": 1e-4}, stepped, method).parameters


RATES = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4, unique=True)
FIT = st.one_of(
    st.builds(lambda values: {"values": values}, RATES),
    st.builds(
        lambda kind, low, wide: {"distribution": kind, "min": low, "max": low + wide},
        st.sampled_from(["uniform", "log_uniform_values", "q_log_uniform_values"]),
        *(st.floats(1e-6, 0.1), st.floats(0.01, 0.5)),
    ),
    st.builds(
        lambda low, steps, step: {"min": low, "max": low + steps * step, "q": step},
        *(st.sampled_from([0.01, 0.1, 0.3]), st.integers(2, 9)),
        st.sampled_from([0.01, 0.025, 0.1]),
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
        return  # such as steps that begin at a rate of 0
    for number in (lambda _: 0.0, lambda _: 1.0, lambda name: hashed(seed, 0, name)):
        point = draw_point(spec.parameters, number, {})
        config = spec.config_for(point)
        assert config.optim.lr == point["optim.lr"]
        assert config.optim.weight_decay == point["optim.weight_decay"]
