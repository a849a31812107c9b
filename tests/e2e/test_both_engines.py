"""The same sweep in either engine: the same proposals, decisions, states and best trial."""

from __future__ import annotations

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
    return [
        {
            "params": trial["params"],
            "state": trial["state"],
            "value": trial["value"],
            "reason": trial["reason"],
            "epochs": [
                (Path(run["folder"]) / "history.json").read_text().count('"epoch"')
                for run in trial["runs"]
                if (Path(run["folder"]) / "history.json").exists()
            ],
            "metrics": [repeatable(run["metrics"]) for run in trial["runs"]],
        }
        for trial in sweep.show()["trials"]
    ]


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
