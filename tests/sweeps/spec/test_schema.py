"""The JSON schema: it accepts what ships, and refuses what an editor should underline."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.trial import SECTIONS
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.sweeps.spec.normalize import IGNORED, KEYS
from carft_sweep.sweeps.spec.settings import EARLY_TERMINATION
from tests.sweeps.spec.validator import SCHEMA, VALIDATOR

BASE = {"name": "x", "trial": {"algorithm": "car_ft"}}
WHEN = {"when": {"algorithm.name": "car_ft"}}


def test_the_schema_knows_every_key_section_algorithm_and_merge() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    properties = SCHEMA["properties"]
    assert set(properties) == {*KEYS, *IGNORED}
    trial = properties["trial"]["properties"]
    for name, section in SECTIONS.items():
        assert set(trial[name]["properties"]) == set(section.model_fields), name
    bare, *forms = trial["algorithm"]["anyOf"]
    assert bare["enum"] == sorted(ALGORITHMS)
    assert {form["properties"]["name"]["const"] for form in forms} == set(ALGORITHMS)
    assert trial["merges"]["items"]["anyOf"][0]["enum"] == sorted(MERGES)


@pytest.mark.parametrize(
    "change",
    [
        {"naem": "x"},
        {"metric": {"name": "id/val/top5"}},
        {"seeds": [0, 0]},
        {"run_cap": 0},
        {"selection": {"within": 2}},
        {"baselines": ["nobody"]},
        {"baselines": [{"name": "fine_tune", "kl_weight": 1.0}]},
        {"parameters": {"optim.lr": [1e-4]}},
        {"parameters": {"optim.lr": {"distribution": "loguniform", "min": 1, "max": 2}}},
        {"trial": {"optim": {"lr": -1}}},
        {"trial": {"algorithm": {"name": "car_ft", "kl_wight": 1}}},
        {"trial": {"merges": [{"name": "wise_ft", "alphas": [2]}]}},
        {"metrics": [{"name": "id/val/top1"}]},
        {"early_terminate": {"type": "medain"}},
        {"early_terminate": {"type": "median", "patience": 3}},
        {"race_seeds": {"after": 1}},
        {"try_first": {"optim.lr": 1e-4}},
        {"time_budget": "2 hours"},
        {"retries": {"nan": 1}},
        {"engine": "slurm"},
        {"parallel": "all"},
        {"resources": {"gpus": "all"}},
        {"parameters": {"optim.lr": {"values": [1e-4], "probabilities": [2]}}},
    ],
    ids=str,
)
def test_the_schema_refuses_a_mistake(change: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(BASE | change)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"seeds": 3, "confirm_seeds": 5},
        {"method": "bayes"},
        {"trial": {"algorithm": {"name": "car_ft"}, "optim.lr": 1e-4}},
        {"program": "train.py", "command": ["python"], "project": "robust", "entity": "me"},
        {"metric": {"name": "id/val/top1", "target": 0.9}},
        {"metrics": [{"name": "id/val/top1"}, {"name": "id/val/nll", "merge": "wise_ft@0.5"}]},
        *({"early_terminate": {"type": kind}} for kind in EARLY_TERMINATION),
        {"try_first": [{"optim.lr": 1e-4}, {"lr": 1e-3}]},
        {"time_budget": "1d2h30m", "timeout": 90},
        {"retries": {"crashed": 1, "out_of_memory": 0}, "breaker": 0},
        {"engine": "local", "parallel": "auto", "resources": {"gpus": "auto"}},
        {"resources": {"cpus": 4, "gpus": 0.5, "custom": {"tpu": 1}}},
        {"import": ["a", "./b.py"]},
        {"parameters": {"optim.lr": {"distribution": "uniform", "min": 1, "max": 2}}},
        {"parameters": {"algorithm.kl_weight": {"min": 0.1, "max": 1, **WHEN}}},
    ],
    ids=str,
)
def test_the_schema_accepts_each_way_to_write(change: dict[str, Any]) -> None:
    VALIDATOR.validate(BASE | change)


def test_an_editor_says_that_the_default_of_kl_weight_has_no_published_source() -> None:
    forms = SCHEMA["properties"]["trial"]["properties"]["algorithm"]["anyOf"]
    every = [form.get("properties", {}) for form in forms]
    (car_ft,) = (fields for fields in every if fields.get("name") == {"const": "car_ft"})
    assert "no published source" in car_ft["kl_weight"]["description"]
