"""A search that either engine ends alike, and a sweep that ends with soups of its runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.status import summary_of
from tests.e2e.conftest import MakeTiny, Tiny, repeatable

pytestmark = pytest.mark.timeout(900)


def seen(sweep: Tiny) -> list[dict[str, Any]]:
    def seen_of(trial: dict[str, Any]) -> dict[str, Any]:
        histories = (Path(run["folder"]) / "history.json" for run in trial["runs"])
        return {
            **{name: trial[name] for name in ("params", "state", "value", "reason")},
            "epochs": [of.read_text().count('"epoch"') for of in histories if of.exists()],
            "metrics": [repeatable(run["metrics"]) for run in trial["runs"]],
        }

    return [seen_of(trial) for trial in sweep.show()["trials"]]


@pytest.mark.slow  # tests/sweeps/engines gives both a recorded stream of toy runs
def test_tpe_with_asha_proposes_prunes_and_finds_the_same_in_both(
    tiny: MakeTiny, tmp_path: Path
) -> None:
    local = tiny(
        "search",
        [],
        optim={"lr": None},
        method="tpe",
        run_cap=9,
        parameters={
            "algorithm.kl_weight": {"distribution": "log_uniform_values", "min": 0.01, "max": 10},
            "optim.lr": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2},
        },
        metric={"name": "id/val/nll"},
        early_terminate={"type": "asha", "min_epochs": 1, "reduction_factor": 2},
        seeds=[0, 1],
        parallel=1,
    )
    ray = replace(local, home=tmp_path / "ray")
    local.call("run", "--engine", "local")
    ray.call("run", "--engine", "ray")
    trials = seen(local)
    assert trials == seen(ray)
    states = [trial["state"] for trial in trials]
    assert states.count("complete") >= 1
    assert states.count("pruned") >= 2
    ledgers = (find_ledger(Home(sweep.home), "search") for sweep in (local, ray))
    best, other = (summary_of(ledger)["best"] for ledger in ledgers)
    assert best == other
    assert best["value"] == min(trial["value"] for trial in trials if trial["value"])


SOUPS: dict[str, Any] = {
    "seeds": [0, 1],
    "baselines": ["zero_shot", "fine_tune"],
    "after": [
        {"algorithm": {"name": "uniform_soup"}, "of": {"algorithm": "fine_tune"}},
        {"algorithm": "model_stock", "of": {"algorithm": "car_ft", "settings": "all"}},
    ],
}


def test_a_sweep_makes_its_soups_and_compares_them(tiny: MakeTiny) -> None:
    sweep = tiny("souped", [1.0], epochs=1, **SOUPS)
    sweep.in_process("run")
    rows = {row["label"]: row for row in json.loads(sweep.in_process("compare", "--json"))["rows"]}
    for label in ("uniform_soup of=fine_tune", "model_stock of=car_ft settings=all"):
        row, merged = rows[label], rows[f"{label} + wise_ft@0.5"]
        assert (row["role"], row["n"], merged["n"]) == ("soup", 1, 1)
        assert 0 <= row["metrics"]["ood/mean/top1"]["mean"] <= 1
