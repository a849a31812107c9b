"""A sweep ends at its target, at its time budget and by its cap, and goes on when they grow."""

from __future__ import annotations

import time
from typing import Any

import pytest

from carft_sweep.sweeps.ledger.ledger import Ledger
from carft_sweep.sweeps.scheduler.driver import TimeBudget
from tests.sweeps.conftest import ToySweep

RANDOM: dict[str, Any] = {
    "method": "random",
    "parameters": {"algorithm.kl_weight": {"min": 0.0, "max": 3.0}},
    "seeds": [0],
    "baselines": [],
}


def test_no_trial_begins_once_one_is_as_good_as_the_target(toy: ToySweep) -> None:
    toy.run(run_cap=50, metric={"name": "id/val/top1", "target": 0.75}, **RANDOM)
    values = [trial.value or 0.0 for trial in toy.ledger().trials()]
    assert max(values[:-1], default=0.0) < 0.75 <= values[-1]
    assert len(values) < 50
    toy.run(run_cap=50, metric={"name": "id/val/top1", "target": 0.75}, **RANDOM)
    assert len(toy.ledger().trials()) == len(values)
    toy.run(run_cap=len(values) + 2, **RANDOM)
    assert len(toy.ledger().trials()) == len(values) + 2


def test_a_used_up_time_budget_starts_nothing_and_a_larger_one_goes_on(toy: ToySweep) -> None:
    toy.run(run_cap=1, **RANDOM)
    ledger = toy.ledger()
    ledger.remember("seconds", 3600.0)
    ended = toy.run(run_cap=3, time_budget="1h", **RANDOM)
    assert len(toy.ledger().trials()) == 1
    assert (ended.state, ended.exit_code, ended.done) == ("done", 0, 1)
    assert any("time budget is used up" in line for line in toy.lines)
    toy.run(run_cap=3, time_budget="2h", **RANDOM)
    assert len(toy.ledger().trials()) == 3
    assert toy.ledger().generation == 1


def test_time_is_counted_over_all_drivers(toy: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run(run_cap=1, **RANDOM)
    ledger: Ledger = toy.ledger()
    ledger.remember("seconds", 0.0)
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for spent in (40.0, 80.0):
        budget = TimeBudget(ledger, 100.0)
        now[0] += 40.0
        assert budget.spent == spent
        budget.count(now=True)
    budget = TimeBudget(ledger, 100.0)
    assert not budget.is_used_up
    now[0] += 20.0
    assert budget.is_used_up
