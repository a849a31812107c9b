"""Whole sweeps by every method of search: what it proposes and notes reaches the ledger."""

from __future__ import annotations

from typing import Any

import pytest

from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.runs import RunStore, measured
from carft_sweep.sweeps.ledger.status import source_of
from carft_sweep.sweeps.scheduler import active_trial
from carft_sweep.sweeps.scheduler.proposer import GENERATION, ConstraintMisses
from carft_sweep.sweeps.spec.settings import METHODS, Constraint
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from tests.sweeps.conftest import SEARCH, Carft, ToySweep

PARAMETERS: dict[str, Any] = {
    "algorithm.kl_weight": {"min": 0.1, "max": 3.0},
    "optim.clip": {"values": [None, 1.0]},
    "optim.warmup": {"min": 0.0, "max": 0.5, "when": {"optim.clip": 1.0}},
}
FIRST = [{"algorithm.kl_weight": 0.5, "optim.clip": 1.0, "optim.warmup": 0.25}]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "grid"])
def test_a_search_keeps_what_is_active_and_goes_on_where_it_was(toy: ToySweep, method: str) -> None:
    keys = {**SEARCH, "method": method, "parameters": PARAMETERS, "try_first": FIRST}
    toy.run(**{**keys, "run_cap": 3})
    keys["run_cap"] = 6
    assert toy.run(**keys).state == "done"
    trials = toy.ledger().trials()
    assert [trial.state for trial in trials] == ["complete"] * 6
    assert trials[0].params == FIRST[0]
    for trial in trials:
        assert ("optim.warmup" in trial.params) == (trial.params["optim.clip"] == 1.0)
    assert len({trial.params["algorithm.kl_weight"] for trial in trials}) == 6
    spec = load_spec(toy.file(**keys))
    assert all(spec.config_for(trial.params) for trial in trials)
    noted = [GENERATION in trial.sampler for trial in toy.ledger().proposals()]
    # Nothing is asked for the first, which is given whole.
    assert noted == [False, *[method == "nsga2"] * 5]


def test_a_baseline_is_drawn_along_with_the_trials_and_goes_on_with_them(toy: ToySweep) -> None:
    drawn: dict[str, Any] = {
        **{"method": "random", "seeds": [0]},
        "parameters": {
            "optim.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
            "algorithm.kl_weight": {"min": 0.1, "max": 1.0},
        },
    }
    for cap in (2, 4):
        toy.run(**drawn, run_cap=cap)
        settings = [*toy.ledger().settings()]
        rates = [
            setting.params["optim.lr"] for setting in settings if setting.algorithm == "car_ft"
        ]
        assert len(rates) == cap
        tuned = [setting.params for setting in settings if setting.algorithm == "fine_tune"]
        assert tuned == [{"optim.lr": rate} for rate in rates]
    assert len({*toy.trained().values()}) == 1  # none is trained again


def test_a_trial_misses_a_constraint_by_what_its_runs_lack(toy: ToySweep) -> None:
    weights = {"algorithm.kl_weight": {"values": [0.3, 0.65, 1.3]}}
    keys: Any = {"parameters": weights, "constraint": {"of": "fine_tune", "margin": 0.01}}
    toy.run(**keys, baselines=["zero_shot", "fine_tune"])
    spec = load_spec(toy.file(**keys, baselines=["fine_tune"]))
    ledger, runs = toy.ledger(), RunStore(toy.home.runs)
    # Fine-tuning has 0.77, the trials 0.8 and a tenth of their distance from 0.3 less.
    missed = {number: pytest.approx(miss) for number, miss in enumerate([-0.04, -0.005, 0.06])}
    assert ConstraintMisses(spec, ledger, runs).by_trial() == missed
    for constraint in (Constraint(of="car_ft"), None):  # of no baseline that there is, and none
        changed = spec.model_copy(update={"constraint": constraint})
        assert ConstraintMisses(changed, ledger, runs).by_trial() == {}


def test_misses_of_a_constraint_are_asked_again_without_reading_any_run_twice(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: Any = {
        "parameters": {"algorithm.kl_weight": {"values": [0.3, 0.65, 1.3]}},
        "constraint": {"of": "fine_tune", "margin": 0.01},
    }
    toy.run(**keys, baselines=["fine_tune"])
    spec = load_spec(toy.file(**keys, baselines=["fine_tune"]))
    ledger, runs = toy.ledger(), RunStore(toy.home.runs)
    opened: list[str] = []

    def counted(folder: Any, label: str) -> Any:
        opened.append(str(folder))
        return measured(folder, label)

    monkeypatch.setattr(active_trial, "measured", counted)
    misses = ConstraintMisses(spec, ledger, runs)
    first = misses.by_trial()
    assert len(opened) == len({*opened}) > 3
    opened.clear()
    assert misses.by_trial() == first
    assert opened == []
    assert ConstraintMisses(spec, ledger, runs).by_trial() == first


def test_a_search_begins_with_the_best_points_of_another(toy_cli: ToySweep, carft: Carft) -> None:
    carft("run", toy_cli.file(parameters={"algorithm.kl_weight": {"values": [0.1, 0.9, 3.0]}}))
    search: dict[str, Any] = {
        **{"name": "second", "method": "random", "run_cap": 3},
        "parameters": {
            "algorithm.kl_weight": {"min": 0.0, "max": 1.0},
            "optim.lr": {"min": 1e-4, "max": 1e-2},
        },
    }
    file = toy_cli.file(**search, try_first={"from": "toy", "best": 3})
    assert "tries 2 points of toy first" in carft("check", file).out
    carft("run", file)
    ledger = find_ledger(toy_cli.home, "second")
    values = toy_cli.values()
    first = sorted((0.1, 0.9), key=lambda weight: -(values[weight] or 0.0))
    assert [trial.params["algorithm.kl_weight"] for trial in ledger.trials()[:2]] == first
    assert [source_of(ledger.spec, trial) for trial in ledger.trials()] == ["toy", "toy", None]
    shown = carft("show", "second").out
    assert shown.count("from toy") == 2
    assert "2 trials (0 to 1) tried first what was best in toy" in carft("compare", "second").out
    assert toy_cli.study("second").trials[0].user_attrs["from"] == "toy"
    (toy_cli.home.sweep("toy") / "ledger.jsonl").unlink()
    assert "nothing left to do" in carft("resume", "second").out
    file = toy_cli.file(**search, try_first={"from": "to"})
    assert "no sweep 'to'" in carft("run", file, code=2).err


def test_points_of_another_sweep_that_come_to_the_same_here_are_tried_once(toy: ToySweep) -> None:
    def tried(*best: dict[str, Any]) -> SweepSpec:
        file = toy.file(**SEARCH, try_first={"from": "second"})
        return load_spec(file, best_of=lambda *_: best)

    alike = [{"algorithm.kl_weight": 0.3, "optim.lr": rate} for rate in (1e-4, 1e-3)]
    assert tried(*alike).try_first == ({"algorithm.kl_weight": 0.3},)
    (warning,) = tried({"optim.lr": 1e-4}).warnings
    assert warning.endswith(
        "nothing of second is tried first: its points have no value of this space"
    )
