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
    **{"name": "x", "method": "tpe", "seeds": 2},
    "parameters": {"optim.lr": {"min": 1e-5, "max": 1e-3}},
    "trial": {"algorithm": {"name": "car_ft"}, "merges": ["wise_ft"]},
}


def load(folder: Path, **keys: Any) -> SweepSpec:
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump({**BASE, **keys}, sort_keys=False))
    return load_spec(file)


CHANGES: dict[Effect, list[dict[str, Any]]] = {
    "extend": [
        *({"description": "text"}, {"confirm_seeds": 3}, {"baselines": ["fine_tune"]}),
        *({"run_cap": 30}, {"time_budget": "2h"}, {"metric": {"target": 0.9}}, {"timeout": 60}),
        *({"retries": 3}, {"retries": {"preempted": 3}}, {"breaker": 0}, {"engine": "ray"}),
        *({"parallel": 4}, {"resources": {"gpus": 0.5, "custom": {"tpu": 1}}}, {"import": "json"}),
        *({"report": {"id_margin": 0.01}}, {"selection": {"within": 0.01}}),
        *({"tags": {"team": "vision"}}, {"notes": "Why we ask."}, {"experiment": "paper"}),
        {"after": [{"algorithm": "uniform_soup", "of": "car_ft"}]},
        {"trial": {**BASE["trial"], "data": {"root": "elsewhere"}}},
        {"trial": {**BASE["trial"], "merges": []}},
    ],
    "reevaluate": [
        {"seeds": 3},
        {"trial": {**BASE["trial"], "keep": {"result": "best_val"}}},
        {"trial": {**BASE["trial"], "data": {"shifts": ["pixel"]}}},
    ],
    "restart": [
        *({"seed": 1}, {"method": "random"}, {"metric": {"name": "id/val/nll"}}),
        {"constraint": {"name": "id/val/nll"}, "baselines": ["zero_shot"]},
        {"metrics": [{"name": "id/val/top1"}, {"name": "id/val/nll"}]},
        {"parameters": {"optim.lr": {"min": 1e-6, "max": 1e-3}}},
        {"trial": {**BASE["trial"], "optim": {"epochs": 3}}},
        *({"early_terminate": {"type": "median"}}, {"race_seeds": {"margin": 0.02}}),
        {
            **{"tasks": "data.test_domain", "method": "random"},
            "parameters": {"data.test_domain": {"values": ["art", "photo"]}},
        },
        {"try_first": [{"optim.lr": 1e-4}]},
        {"try_first": [{"optim.lr": 1e-4}], "try_first_from": "x"},
    ],
}
CASES = [(keys, kind) for kind, cases in CHANGES.items() for keys in cases]


@pytest.mark.parametrize(("keys", "expected"), CASES, ids=str)
def test_a_change_extends_reevaluates_or_restarts_the_sweep(
    keys: dict[str, Any], expected: Effect, tmp_path: Path
) -> None:
    before, now = load(tmp_path).as_dict(), load(tmp_path, **keys).as_dict()
    changed = changes(before, now)
    assert effect(changed) == expected
    assert effect(changes(now, before)) == expected
    assert effect(changes(now, now)) is None


def test_every_key_that_may_change_is_tried_here() -> None:
    tried = {key for keys, _ in CASES for key in keys}
    assert tried == {*KEYS} - {"name", "profiles"}


def test_an_early_termination_that_changes_is_shown_field_by_field(tmp_path: Path) -> None:
    before = load(tmp_path, early_terminate={"type": "asha"}).as_dict()
    now = load(tmp_path, early_terminate={"type": "asha", "min_epochs": 2}, retries=2).as_dict()
    lines = [str(change) for change in changes(before, now)]
    by_class = [f"retries.{kind}: 1 -> 2" for kind in ("crashed", "timeout")]
    assert lines == ["early_terminate.min_epochs: 1 -> 2", *by_class]
    both = changes({"seeds": [0], "run_cap": 1}, {"seeds": [1], "run_cap": 2})
    assert effect(both) == "reevaluate"
    assert effect([*both, *changes({"method": "grid"}, {"method": "tpe"})]) == "restart"
