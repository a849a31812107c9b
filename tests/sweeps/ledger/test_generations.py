"""What a changed sweep file means for the sweep of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from carft_sweep.sweeps.ledger.generations import Effect, changes, effect
from carft_sweep.sweeps.spec.normalize import KEYS
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec

BASE: dict[str, Any] = {
    "name": "x",
    "method": "tpe",
    "parameters": {"optim.lr": {"min": 1e-5, "max": 1e-3}},
    "seeds": 2,
    "trial": {"algorithm": {"name": "car_ft"}, "merges": ["wise_ft"]},
}


def load(folder: Path, **keys: Any) -> SweepSpec:
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump({**BASE, **keys}, sort_keys=False))
    return load_spec(file)


CHANGES: dict[str, tuple[dict[str, Any], Effect]] = {
    "description": ({"description": "text"}, "extend"),
    "confirm_seeds": ({"confirm_seeds": 3}, "extend"),
    "after": ({"after": [{"algorithm": "uniform_soup", "of": "car_ft"}]}, "extend"),
    "baselines": ({"baselines": ["fine_tune"]}, "extend"),
    "run_cap": ({"run_cap": 30}, "extend"),
    "time_budget": ({"time_budget": "2h"}, "extend"),
    "metric target": ({"metric": {"target": 0.9}}, "extend"),
    "report": ({"report": {"id_margin": 0.01}}, "extend"),
    "retries": ({"retries": 3}, "extend"),
    "retries by class": ({"retries": {"preempted": 3}}, "extend"),
    "timeout": ({"timeout": 60}, "extend"),
    "breaker": ({"breaker": 0}, "extend"),
    "engine": ({"engine": "ray"}, "extend"),
    "parallel": ({"parallel": 4}, "extend"),
    "resources": ({"resources": {"gpus": 0.5, "custom": {"tpu": 1}}}, "extend"),
    "import": ({"import": "json"}, "extend"),
    "seeds": ({"seeds": 3}, "reevaluate"),
    "seed": ({"seed": 1}, "restart"),
    "method": ({"method": "random"}, "restart"),
    "metric": ({"metric": {"name": "id/val/nll"}}, "restart"),
    "constraint": ({"constraint": {"name": "id/val/nll"}, "baselines": ["zero_shot"]}, "restart"),
    "metrics": ({"metrics": [{"name": "id/val/top1"}, {"name": "id/val/nll"}]}, "restart"),
    "selection": ({"selection": {"within": 0.01}}, "extend"),
    "parameters": ({"parameters": {"optim.lr": {"min": 1e-6, "max": 1e-3}}}, "restart"),
    "trial": ({"trial": {**BASE["trial"], "optim": {"epochs": 3}}}, "restart"),
    "root": ({"trial": {**BASE["trial"], "data": {"root": "elsewhere"}}}, "extend"),
    "merges": ({"trial": {**BASE["trial"], "merges": []}}, "extend"),
    "result": ({"trial": {**BASE["trial"], "keep": {"result": "best_val"}}}, "reevaluate"),
    "shifts": ({"trial": {**BASE["trial"], "data": {"shifts": ["pixel"]}}}, "reevaluate"),
    "early_terminate": ({"early_terminate": {"type": "median"}}, "restart"),
    "race_seeds": ({"race_seeds": {"margin": 0.02}}, "restart"),
    "tasks": (
        {
            "tasks": "data.test_domain",
            "method": "random",
            "parameters": {"data.test_domain": {"values": ["art", "photo"]}},
        },
        "restart",
    ),
    "try_first": ({"try_first": [{"optim.lr": 1e-4}]}, "restart"),
    "try_first_from": ({"try_first": [{"optim.lr": 1e-4}], "try_first_from": "x"}, "restart"),
    "tags": ({"tags": {"team": "vision"}}, "extend"),
    "notes": ({"notes": "Why we ask."}, "extend"),
    "experiment": ({"experiment": "paper"}, "extend"),
}


@pytest.mark.parametrize(("keys", "expected"), CHANGES.values(), ids=list(CHANGES))
def test_a_change_extends_reevaluates_or_restarts_the_sweep(
    keys: dict[str, Any], expected: Effect, tmp_path: Path
) -> None:
    before, now = load(tmp_path).as_dict(), load(tmp_path, **keys).as_dict()
    changed = changes(before, now)
    assert effect(changed) == expected
    assert effect(changes(now, before)) == expected
    assert effect(changes(now, now)) is None


def test_every_key_that_may_change_is_tried_here() -> None:
    tried = {key for keys, _ in CHANGES.values() for key in keys}
    assert tried == {*KEYS} - {"name", "profiles"}


def test_an_early_termination_that_changes_is_shown_field_by_field(tmp_path: Path) -> None:
    before = load(tmp_path, early_terminate={"type": "asha"}).as_dict()
    now = load(tmp_path, early_terminate={"type": "asha", "min_epochs": 2}, retries=2).as_dict()
    assert [str(change) for change in changes(before, now)] == [
        "early_terminate.min_epochs: 1 -> 2",
        "retries.crashed: 1 -> 2",
        "retries.timeout: 1 -> 2",
    ]
    both = changes({"seeds": [0], "run_cap": 1}, {"seeds": [1], "run_cap": 2})
    assert effect(both) == "reevaluate"
    assert effect([*both, *changes({"method": "grid"}, {"method": "tpe"})]) == "restart"
