"""A trial that is not worth going on with is stopped with all its runs, and told truthfully."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.files import read_json, write_json
from tests.sweeps import toy_core
from tests.sweeps.conftest import SEARCH, ToySweep, toy_in
from tests.sweeps.scheduler.dying import Crash, Hooked, at, crash, dying, state_of

WEIGHTS = [0.3, 0.4, 0.5, 0.6, 2.0, 3.0]
"""From good to bad, so that each later one is below the median of those before."""
MEDIAN = {"type": "median", "startup_trials": 2, "min_epochs": 2, "allow_grid": True}
PRUNING: dict[str, Any] = {
    "parameters": {"algorithm.kl_weight": {"values": WEIGHTS}},
    "early_terminate": MEDIAN,
    **{"seeds": [0, 1], "baselines": []},
}


def bury(toy: ToySweep) -> None:
    """Let the leases of a driver that died in this very process be those of a dead one."""
    for file in toy.home.runs.glob("*/run.json"):
        state = read_json(file)
        if state["lease"] is not None:
            state["lease"]["pid"] = 2**22 + 1  # more than Linux ever gives to a process
            write_json(file, state)


def states(toy: ToySweep, name: str = "toy") -> dict[float, str]:
    return {t.params["algorithm.kl_weight"]: t.state for t in toy.ledger(name).trials()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ToySweep:
    """A home in which PRUNING came to its end; it is shared: only look at it."""
    with pytest.MonkeyPatch.context() as patch:
        toy = toy_in(tmp_path_factory.mktemp("whole"), patch)
        assert toy.run(**PRUNING).state == "done"
    return toy


def test_bad_trials_are_pruned_in_the_ledger_and_wherever_it_is_told(whole: ToySweep) -> None:
    assert states(whole) == {weight: "complete" if weight < 0.5 else "pruned" for weight in WEIGHTS}
    assert sum("pruned: " in line for line in whole.lines) == 4
    pruned = whole.ledger().trials()[-1]
    assert pruned.values == ()
    assert "id/val/top1" in (pruned.reason or {})["message"]
    frozen = whole.study().trials[-1]
    assert frozen.state.name == "PRUNED"
    assert list(frozen.intermediate_values) == [1, 2]
    assert frozen.value == frozen.intermediate_values[2]
    child = whole.tracked()["car_ft kl_weight=3 s0"]
    assert (child.state, child.tags["carft.state"]) == ("killed", "pruned")
    assert [point.step for point in child.history["id/val/top1"]] == [0, 1, 2]
    state = state_of(whole, pruned.runs["0"])
    assert (state.state, state.lease) == ("stopped", None)
    # Seeds run in order, and a pruned trial runs no more of them; the others have their means.
    assert not (whole.home.runs / pruned.runs["1"]).exists()
    mean = pytest.approx((0.8 + 0.81) / 2)
    assert whole.study().trials[0].intermediate_values[toy_core.EPOCHS] == mean
    assert whole.ledger().trials()[0].reports[toy_core.EPOCHS] == mean


def test_the_same_sweep_again_or_another_one_trains_no_pruned_run(toy: ToySweep) -> None:
    toy.run(**PRUNING)
    trained, tracked = toy.trained(), str(toy.tracker.runs)
    assert toy.run(**PRUNING).state == "done"
    assert str(toy.tracker.runs) == tracked
    toy.run(name="again", **PRUNING)
    assert states(toy, "again") == states(toy)
    assert toy.trained() == trained


@pytest.mark.parametrize(
    ("hook", "number"),
    [("epoch", 1), ("epoch", 4), ("reported", 7), ("epoch", 13), ("reported", 23)],
)
def test_a_driver_that_dies_at_any_epoch_changes_no_decision(
    toy: ToySweep, whole: ToySweep, hook: str, number: int
) -> None:
    expected = [(t.params, t.state, t.values, t.reports) for t in whole.ledger().trials()]
    values = [t.intermediate_values for t in whole.study().trials]
    with pytest.raises(Crash):
        toy.run(Hooked(**{hook: at(number, crash)}), **PRUNING)
    bury(toy)
    toy.run(**PRUNING)
    ledger = toy.ledger()
    assert [(t.params, t.state, t.values, t.reports) for t in ledger.trials()] == expected
    assert [t.intermediate_values for t in toy.study().trials] == values
    assert {run.state for run in toy.tracked().values()} == {"finished", "killed"}
    tags = [run.tags["carft.state"] for run in toy.tracked().values()]
    assert sorted(tags) == ["done"] * 4 + ["pruned"] * 4


def test_a_run_is_stopped_whose_driver_died_behind_the_decision_to_prune_it(toy: ToySweep) -> None:
    with dying("prune"):
        toy.run(**PRUNING)
    bury(toy)
    toy.run(**PRUNING)
    pruned = [trial for trial in toy.ledger().trials() if trial.state == "pruned"]
    run_states = [state_of(toy, trial.runs["0"]) for trial in pruned]
    assert {(state.state, state.lease) for state in run_states} == {("stopped", None)}


def test_a_duplicate_of_a_pruned_trial_is_pruned_at_once(toy: ToySweep) -> None:
    weights = {"algorithm.kl_weight": {"values": [0.3, 3.0]}}
    rule = {"type": "threshold", "lower": 0.3, "min_epochs": 2}
    toy.run(**{**SEARCH, "method": "random", "parameters": weights}, early_terminate=rule)
    pruned = [t for t in toy.ledger().trials() if t.state == "pruned"]
    assert len(pruned) > 1
    assert {(t.reason or {})["kind"] for t in pruned[1:]} == {"duplicate"}
    assert (pruned[1].reason or {})["message"] == f"the same as trial {pruned[0].number}"
    assert len(toy.trained()) == 2


def test_a_trial_that_is_clearly_worse_after_its_first_seed_runs_no_more(toy: ToySweep) -> None:
    weights = {"algorithm.kl_weight": {"values": [0.3, 0.4, 3.0]}}
    racing: dict[str, Any] = {"parameters": weights, "race_seeds": {"margin": 0.05}}
    racing |= {"seeds": [0, 1, 2], "baselines": []}
    with pytest.raises(Crash):
        toy.run(Hooked(epoch=at(6 * (toy_core.EPOCHS + 1) + 2, crash)), **racing)
    bury(toy)
    toy.run(**racing)
    assert states(toy) == {0.3: "complete", 0.4: "complete", 3.0: "pruned"}
    assert len(toy.trained()) == 3 + 3 + 1
    last = toy.ledger().trials()[-1]
    assert state_of(toy, last.runs["0"]).state == "done"  # only the trial is not whole


def test_nothing_is_raced_against_a_trial_that_misses_the_constraint(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opposed(_: object, top1: float) -> dict[str, float]:
        return {"id/val/top1": top1, "ood/val/top1": 1 - top1}

    monkeypatch.setattr(toy_core, "accuracies", opposed)
    weights = {"algorithm.kl_weight": {"values": [5.0, 0.3, 0.1]}}
    rules: Any = {"constraint": {"margin": 0.01}, "race_seeds": {"margin": 0.015}}
    toy.run(parameters=weights, metric={"name": "ood/val/top1"}, **rules)
    assert states(toy) == {5.0: "complete", 0.3: "complete", 0.1: "complete"}


def test_a_trial_without_seeds_has_its_value_at_each_seed_of_the_others(toy: ToySweep) -> None:
    toy.run(
        parameters={"algorithm.name": {"values": ["zero_shot", "car_ft"]}},
        race_seeds={"margin": 0.03, "after": 2},  # CAR-FT is worse by 0.04 and 0.03
        seeds=[0, 1, 2],
        baselines=[],
        trial={"device": "cpu"},
        report={"model": False},  # which would be a real one's
    )
    assert [trial.state for trial in toy.ledger().trials()] == ["complete", "pruned"]


def test_the_mean_over_seeds_does_not_depend_on_which_seed_was_first(
    toy: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run(seeds=[2], baselines=[])
    fresh = toy_in(tmp_path / "fresh", monkeypatch)
    fresh.folder.mkdir()
    for home in (toy, fresh):
        home.run(seeds=[0, 1, 2], baselines=[])
    means = [[trial.reports for trial in home.ledger().trials()] for home in (toy, fresh)]
    assert means[0] == means[1]
