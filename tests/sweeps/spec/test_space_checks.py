"""Conditions: a parameter varies where its `when` says. What can never hold is in broken.yaml."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.space.distributions import Condition
from carft_sweep.sweeps.space.points import draw_point, hashed
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec

LR = {"values": [1e-4, 1e-3]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def load(file: Path, parameters: dict[str, Any], *overrides: str, **more: Any) -> SweepSpec:
    trial = {"algorithm": "car_ft"} | more.pop("trial", {})
    data = {"name": "x", "parameters": parameters, "trial": trial, **more}
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_spec(file, overrides)


def refused(file: Path, parameters: dict[str, Any], **more: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load(file, parameters, **more)
    return str(caught.value)


def test_a_parameter_varies_only_where_its_condition_holds(file: Path) -> None:
    spec = load(
        file, {"optim.clip": {"values": [None, 1.0]}, "optim.lr": LR | {"when": {"optim.clip": 1}}}
    )
    assert spec.points() == [
        {"optim.clip": None},
        {"optim.clip": 1.0, "optim.lr": 1e-4},
        {"optim.clip": 1.0, "optim.lr": 1e-3},
    ]
    assert spec.parameters[1].when == (Condition("optim.clip", (1,)),)


def test_where_it_does_not_vary_a_parameter_has_the_trials_value(file: Path) -> None:
    spec = load(
        file,
        {"optim.clip": {"values": [None, 1.0]}, "optim.lr": LR | {"when": {"optim.clip": 1.0}}},
        trial={"optim": {"lr": 5e-5}},
    )
    rates = [spec.config_for(point).optim.lr for point in spec.points()]
    assert rates == [5e-5, 1e-4, 1e-3]


def test_values_are_checked_where_they_can_be_drawn_and_nowhere_else(file: Path) -> None:
    lengths = {
        "eval.every_epoch": {"values": [True, False]},
        "optim.epochs": {"min": 1, "max": 3, "when": {"eval.every_epoch": True}},
        "optim.steps": {"min": 10, "max": 30, "when": {"eval.every_epoch": False}},
    }
    load(file, lengths, method="random")
    both = lengths | {"optim.steps": {"min": 10, "max": 30}}
    assert "give epochs or steps, not both" in refused(file, both, method="random")
    wrong = {
        "optim.clip": {"values": [None, 1.0]},
        "optim.lr": {"min": -1.0, "max": 1.0, "when": {"optim.clip": 1.0}},
    }
    assert "parameters.optim.lr.min: must be greater than 0" in refused(
        file, wrong, method="random"
    )


FIELDS: dict[str, list[Any]] = {
    "optim.clip": [None, 1.0],
    "optim.warmup": [0.0, 0.1],
    "eval.every_epoch": [True, False],
    "algorithm.name": ["car_ft", "fine_tune", "zero_shot"],
    "algorithm.kl_weight": [0.1, 1.0],
}
CONDITIONS = st.dictionaries(
    st.sampled_from([*FIELDS, "keep.result"]),
    st.sampled_from([None, 1, [0.1, 1], True, "car_ft", ["fine_tune", "zero_shot"], "last", []]),
    max_size=2,
)


def outcome(file: Path, parameters: dict[str, Any]) -> SweepSpec | str:
    """A sweep, or the message of a RequestError."""
    try:
        return load(file, parameters, trial={"keep": {"result": "last"}})
    except RequestError as error:
        return str(error)


@given(conditions=st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, CONDITIONS)))
@settings(max_examples=80, deadline=None)
def test_any_conditions_are_refused_or_give_a_grid_of_valid_points_that_random_draws_from(
    tmp_path_factory: pytest.TempPathFactory, conditions: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "x.yaml"
    parameters = {
        name: {"values": FIELDS[name], **({"when": when} if when else {})}
        for name, when in conditions.items()
    }
    spec = outcome(file, parameters)
    if isinstance(spec, str):
        assert spec.startswith("x.yaml:")
        return
    points = spec.points()
    assert [spec.config_for(point) for point in points]
    for seed in range(5):
        assert draw_point(spec.parameters, functools.partial(hashed, seed, 0), {}) in points
