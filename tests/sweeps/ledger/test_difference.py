"""What a changed sweep file means for the sweep of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeps.ledger.generations import Effect, changes, effect
from sweeps.spec.normalize import KEYS
from sweeps.spec.spec import SweepSpec, load_spec

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
    "description": ({"description": "text"}, "goes on"),
    "confirm_seeds": ({"confirm_seeds": 3}, "goes on"),
    "after": ({"after": [{"algorithm": "uniform_soup", "of": "car_ft"}]}, "goes on"),
    "baselines": ({"baselines": ["fine_tune"]}, "goes on"),
    "run_cap": ({"run_cap": 30}, "goes on"),
    "time_budget": ({"time_budget": "2h"}, "goes on"),
    "metric target": ({"metric": {"target": 0.9}}, "goes on"),
    "report": ({"report": {"id_margin": 0.01}}, "goes on"),
    "retries": ({"retries": 3}, "goes on"),
    "retries by class": ({"retries": {"preempted": 3}}, "goes on"),
    "timeout": ({"timeout": 60}, "goes on"),
    "breaker": ({"breaker": 0}, "goes on"),
    "engine": ({"engine": "ray"}, "goes on"),
    "parallel": ({"parallel": 4}, "goes on"),
    "resources": ({"resources": {"gpus": 0.5, "custom": {"tpu": 1}}}, "goes on"),
    "webhook": ({"webhook": "env:HOOK"}, "goes on"),
    "import": ({"import": "json"}, "goes on"),
    "seeds": ({"seeds": 3}, "told again"),
    "seed": ({"seed": 1}, "anew"),
    "method": ({"method": "random"}, "anew"),
    "metric": ({"metric": {"name": "id/val/nll"}}, "anew"),
    "metrics": ({"metrics": [{"name": "id/val/top1"}, {"name": "id/val/nll"}]}, "anew"),
    "selection": ({"selection": {"within": 0.01}}, "anew"),
    "parameters": ({"parameters": {"optim.lr": {"min": 1e-6, "max": 1e-3}}}, "anew"),
    "trial": ({"trial": {**BASE["trial"], "optim": {"epochs": 3}}}, "anew"),
    "shifts": ({"trial": {**BASE["trial"], "data": {"shifts": ["pixel"]}}}, "told again"),
    "early_terminate": ({"early_terminate": {"type": "median"}}, "anew"),
    "race_seeds": ({"race_seeds": {"margin": 0.02}}, "anew"),
    "tasks": (
        {
            "tasks": "data.test_domain",
            "method": "random",
            "parameters": {"data.test_domain": {"values": ["art", "photo"]}},
        },
        "anew",
    ),
    "try_first": ({"try_first": [{"optim.lr": 1e-4}]}, "anew"),
}


@pytest.mark.parametrize(("keys", "expected"), CHANGES.values(), ids=list(CHANGES))
def test_a_change_goes_on_is_told_again_or_begins_anew(
    keys: dict[str, Any], expected: Effect, tmp_path: Path
) -> None:
    before, now = load(tmp_path).as_dict(), load(tmp_path, **keys).as_dict()
    found = changes(before, now)
    assert effect(found) == expected
    assert effect(changes(now, before)) == expected
    assert effect(changes(now, now)) is None


def test_every_key_that_may_change_is_tried_here() -> None:
    tried = {key for keys, _ in CHANGES.values() for key in keys}
    assert tried == {*KEYS} - {"name", "aliases", "allow_grid", "profiles"}


def test_an_early_termination_that_changes_is_shown_field_by_field(tmp_path: Path) -> None:
    before = load(tmp_path, early_terminate={"type": "asha"}).as_dict()
    now = load(tmp_path, early_terminate={"type": "asha", "min_epochs": 2}, retries=2).as_dict()
    assert [str(change) for change in changes(before, now)] == [
        "early_terminate.min_epochs: 1 -> 2",
        "retries.crashed: 1 -> 2",
        "retries.timeout: 1 -> 2",
    ]
