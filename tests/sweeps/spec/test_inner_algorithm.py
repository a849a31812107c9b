"""Fields of the algorithm inside another, `algorithm.of.*`, in a sweep file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from carft_sweep.carft_core.algorithms import ALGORITHMS, Wrapper
from carft_sweep.sweeps.spec.schema import sweep_schema
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec

EMA = {"name": "ema", "of": "car_ft"}
KL = {"algorithm.of.kl_weight": {"values": [0.3, 1.0]}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def load(
    file: Path, parameters: dict[str, Any], algorithm: Any, *overrides: str, **more: Any
) -> SweepSpec:
    data = {"name": "x", "parameters": parameters, "trial": {"algorithm": algorithm}, **more}
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    jsonschema.validate(data, sweep_schema())
    return load_spec(file, overrides)


def inner(spec: SweepSpec) -> list[dict[str, Any]]:
    """What stands in the inner algorithm at each point."""
    configs = [spec.config_for(point).as_dict() for point in spec.points()]
    return [config["algorithm"]["of"] for config in configs]


def test_its_fields_vary_and_the_canonical_form_loads_again(file: Path) -> None:
    spec = load(file, KL, EMA)
    assert [(of["name"], of["kl_weight"]) for of in inner(spec)] == [("car_ft", 0.3), ("car_ft", 1)]
    file.write_text(yaml.safe_dump(spec.as_dict(), sort_keys=False))
    assert load_spec(file).as_dict() == spec.as_dict()


def test_dotted_fields_and_the_command_line_reach_it(file: Path) -> None:
    told = load(file, {}, "ema", "algorithm.of=car_ft", "algorithm.of.kl_weight=4")
    assert inner(told)[0]["kl_weight"] == 4
    dotted = load_dotted(file)
    assert inner(dotted)[0]["kl_weight"] == 5


def load_dotted(file: Path) -> SweepSpec:
    fields = {"algorithm": "ema", "algorithm.of.name": "car_ft", "algorithm.of.kl_weight": 5}
    file.write_text(yaml.safe_dump({"name": "x", "trial": fields}))
    return load_spec(file)


def test_the_inner_algorithm_itself_varies(file: Path) -> None:
    when = {"when": {"algorithm.of.name": "car_ft"}}
    spec = load(
        file,
        {
            "algorithm.of.name": {"values": ["fine_tune", "car_ft"]},
            "algorithm.of.kl_weight": KL["algorithm.of.kl_weight"] | when,
        },
        "ema",
    )
    assert [(of["name"], of.get("kl_weight")) for of in inner(spec)] == [
        *(("fine_tune", None), ("car_ft", 0.3), ("car_ft", 1.0))
    ]


def test_with_an_algorithm_that_wraps_none_they_do_not_vary(file: Path) -> None:
    names = {"algorithm.name": {"values": ["fine_tune", "ema"]}}
    spec = load(file, names | KL, {"of": "car_ft"})
    assert [dict(point) for point in spec.points()] == [
        {"algorithm.name": "fine_tune"},
        {"algorithm.name": "ema", "algorithm.of.kl_weight": 0.3},
        {"algorithm.name": "ema", "algorithm.of.kl_weight": 1.0},
    ]


class Other(Wrapper):
    """A wrapper that changes nothing."""

    name = "other"
    summary = "For a test"


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("baseline", ["fine_tune", {"name": "other", "of": "fine_tune"}])
def test_a_baseline_without_it_has_none_of_its_fields(file: Path, baseline: Any) -> None:
    ALGORITHMS.register(Other)
    (point,) = load(file, KL, EMA, baselines=[baseline]).baseline_configs()
    assert point.params == {}
    assert point.config.as_dict()["algorithm"].get("of", {}).get("kl_weight") is None


@pytest.mark.usefixtures("registries")
def test_a_baseline_that_leaves_it_open_varies_with_the_trials(file: Path) -> None:
    ALGORITHMS.register(Other)
    points = load(file, KL, EMA, baselines=["other"]).baseline_configs()
    inner = [point.config.as_dict()["algorithm"]["of"]["kl_weight"] for point in points]
    assert inner == [0.3, 1.0]
