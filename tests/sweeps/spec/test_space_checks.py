"""Parameters vary where their `when` says, those of the algorithm inside another too."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.algorithms import ALGORITHMS, Wrapper
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.space.distributions import Condition
from carft_sweep.sweeps.space.points import draw_point, hashed
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from tests.sweeps.spec.validator import VALIDATOR

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
    space = {"optim.clip": {"values": [None, 1.0]}, "optim.lr": LR | {"when": {"optim.clip": 1}}}
    spec = load(file, space, trial={"optim": {"lr": 5e-5}})
    clipped = [{"optim.clip": 1.0, "optim.lr": rate} for rate in (1e-4, 1e-3)]
    assert spec.points() == [{"optim.clip": None}, *clipped]
    assert spec.parameters[1].when == (Condition("optim.clip", (1,)),)
    # Elsewhere it has the trial's value.
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
    rate = {"optim.lr": {"min": -1.0, "max": 1.0, "when": {"optim.clip": 1.0}}}
    wrong = {"optim.clip": {"values": [None, 1.0]}, **rate}
    message = refused(file, wrong, method="random")
    assert "parameters.optim.lr.min: must be greater than 0" in message


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


EMA = {"name": "ema", "of": "car_ft"}
KL = {"algorithm.of.kl_weight": {"values": [0.3, 1.0]}}


def wrapped(
    file: Path, parameters: dict[str, Any], algorithm: Any, *overrides: str, **more: Any
) -> SweepSpec:
    return load(file, parameters, *overrides, trial={"algorithm": algorithm}, **more)


def inner(spec: SweepSpec) -> list[dict[str, Any]]:
    """What stands in the inner algorithm at each point."""
    configs = [spec.config_for(point).as_dict() for point in spec.points()]
    return [config["algorithm"]["of"] for config in configs]


def test_its_fields_vary_suit_the_schema_and_the_canonical_form_loads_again(file: Path) -> None:
    spec = wrapped(file, KL, EMA)
    assert [(of["name"], of["kl_weight"]) for of in inner(spec)] == [("car_ft", 0.3), ("car_ft", 1)]
    VALIDATOR.validate(yaml.safe_load(file.read_text()))
    file.write_text(yaml.safe_dump(spec.as_dict(), sort_keys=False))
    assert load_spec(file).as_dict() == spec.as_dict()


def test_dotted_fields_and_the_command_line_reach_it(file: Path) -> None:
    spec = wrapped(file, {}, "ema", "algorithm.of=car_ft", "algorithm.of.kl_weight=4")
    assert inner(spec)[0]["kl_weight"] == 4
    fields = {"algorithm": "ema", "algorithm.of.name": "car_ft", "algorithm.of.kl_weight": 5}
    file.write_text(yaml.safe_dump({"name": "x", "trial": fields}))
    assert inner(load_spec(file))[0]["kl_weight"] == 5
    VALIDATOR.validate(yaml.safe_load(file.read_text()))


def test_the_inner_algorithm_itself_varies(file: Path) -> None:
    when = {"when": {"algorithm.of.name": "car_ft"}}
    names = {"algorithm.of.name": {"values": ["fine_tune", "car_ft"]}}
    weights = {"algorithm.of.kl_weight": KL["algorithm.of.kl_weight"] | when}
    spec = wrapped(file, names | weights, "ema")
    drawn = [(of["name"], of.get("kl_weight")) for of in inner(spec)]
    assert drawn == [("fine_tune", None), ("car_ft", 0.3), ("car_ft", 1.0)]
    VALIDATOR.validate(yaml.safe_load(file.read_text()))


def test_with_an_algorithm_that_wraps_none_they_do_not_vary(file: Path) -> None:
    names = {"algorithm.name": {"values": ["fine_tune", "ema"]}}
    spec = wrapped(file, names | KL, {"of": "car_ft"})
    weights = (0.3, 1.0)
    ema = [{"algorithm.name": "ema", "algorithm.of.kl_weight": weight} for weight in weights]
    assert [dict(point) for point in spec.points()] == [{"algorithm.name": "fine_tune"}, *ema]


class Other(Wrapper):
    """A wrapper that changes nothing."""

    name = "other"
    summary = "For a test"


@pytest.mark.usefixtures("registries")
def test_a_baseline_without_it_has_none_of_its_fields_and_one_that_leaves_it_open_varies(
    file: Path,
) -> None:
    ALGORITHMS.register(Other)
    for baseline in ("fine_tune", {"name": "other", "of": "fine_tune"}):
        (point,) = wrapped(file, KL, EMA, baselines=[baseline]).baseline_configs()
        assert point.params == {}
        assert point.config.as_dict()["algorithm"].get("of", {}).get("kl_weight") is None
    points = wrapped(file, KL, EMA, baselines=["other"]).baseline_configs()
    configs = [point.config.as_dict() for point in points]
    assert [config["algorithm"]["of"]["kl_weight"] for config in configs] == [0.3, 1.0]
