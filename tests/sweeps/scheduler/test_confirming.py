"""What was chosen is run again on seeds that no choice has seen, and judged by these alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from carft_sweep.sweeps.cli.removal import waste
from carft_sweep.sweeps.cli.status import sweep_status
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import has_work_left
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.report.formats import to_json
from tests.sweeps.conftest import Carft, ToySweep
from tests.sweeps.scheduler.dying import stopping_after

FRESH: dict[str, Any] = {"confirm_seeds": 3}
SEEDS = (2, 3, 4)
"""What follows the toy's 0 and 1."""
CRASH = {"do": "raise", "error": "key"}
TUNED = 1 + 2 + 4
BETTER = {"algorithm.kl_weight": {"values": [0.1, 0.2, 0.3]}}


def confirmed(compared: Comparison) -> dict[str, list[int | None]]:
    """Label to the seeds of each unmerged row that confirms."""
    arms = [row.arm for row in compared.rows if "confirmed" in row.marks and row.arm.merge is None]
    return {arm.label: [run.seed for run in arm.done] for arm in arms}


def test_what_was_chosen_runs_on_fresh_seeds_in_the_end_and_is_judged_by_these_alone(
    toy: ToySweep, labels: Callable[[ToySweep], list[str]]
) -> None:
    seeds = [7, 8, 9, 10, 11]
    compared = toy.run(confirm_seeds=seeds).comparison
    settings = ("car_ft kl_weight=0.3", "fine_tune")
    assert labels(toy)[TUNED:] == [f"{name} seed {seed}" for name in settings for seed in seeds]
    assert toy.lines[-1].startswith("[17/17]")
    assert toy.values() == {0.1: pytest.approx(0.785), 0.3: pytest.approx(0.805)}
    selected = [row.arm for row in compared.rows if row.selected]
    assert [[run.seed for run in arm.runs] for arm in selected] == [[0, 1]]
    assert confirmed(compared) == {f"{name} (confirmed)": seeds for name in settings}
    assert compared.fresh_seeds == compared.verdicts[0].pair.seeds == tuple(seeds)
    assert ": car_ft kl_weight=0.3 against fine_tune: OOD mean" in compared.verdict
    assert "over 5 fresh seeds" in compared.verdict
    judged = "chosen on seeds 0, 1 and judged on seeds 7 to 11, which no choice has seen."
    assert compared.verdict.endswith(f"The settings were {judged}")


def test_asking_for_it_later_trains_the_fresh_runs_alone(toy: ToySweep) -> None:
    toy.run()
    before = toy.trained()
    first = toy.run(**FRESH).comparison
    assert (first.fresh_seeds, toy.ledger().generation) == (SEEDS, 1)
    assert len(toy.trained() - before) == 2 * len(SEEDS)
    child = toy.tracked()["car_ft kl_weight=0.3 s4"]
    assert (child.tags["carft.role"], child.state) == ("confirmation", "finished")
    assert "carft.trial" not in child.tags
    trained, tracked = toy.trained(), str(toy.tracker.runs)
    assert to_json(toy.run(**FRESH).comparison) == to_json(first)
    assert toy.trained() == trained
    assert str(toy.tracker.runs) == tracked
    without = toy.run().comparison
    assert (without.fresh_seeds, confirmed(without)) == ((), {})


def test_more_trials_that_change_the_choice_confirm_the_new_one(toy: ToySweep) -> None:
    smaller = toy.run(run_cap=2, parameters=BETTER, **FRESH).comparison
    assert "car_ft kl_weight=0.2 (confirmed)" in confirmed(smaller)
    larger = toy.run(run_cap=3, parameters=BETTER, **FRESH).comparison
    assert [*confirmed(larger)] == ["car_ft kl_weight=0.3 (confirmed)", "fine_tune (confirmed)"]
    assert toy.ledger().generation == 1
    assert larger.verdicts[0].pair.candidate.params == {"algorithm.kl_weight": 0.3}


def test_an_unfinished_confirmation_decides_nothing(toy: ToySweep) -> None:
    compared = toy.run(stopping_after(TUNED + 4), **FRESH).comparison
    assert compared.fresh_seeds == ()
    assert compared.verdicts[0].pair.seeds == (0, 1)
    assert "fresh seed" not in compared.statistics[0]
    missing = "Not confirmed yet: 4 of 6 runs on seeds 2 to 4 are done"
    assert compared.statistics[-1].startswith(missing)
    assert has_work_left(toy.ledger(), RunStore(toy.home.runs))
    before = toy.trained()
    assert toy.run(**FRESH).comparison.fresh_seeds == SEEDS
    assert len(toy.trained() - before) == 2
    assert not has_work_left(toy.ledger(), RunStore(toy.home.runs))


def test_a_fresh_run_that_fails_leaves_the_verdict_to_the_other_seeds(toy: ToySweep) -> None:
    toy.plan({"0.3/3": [CRASH]})
    ended = toy.run(retries=0, **FRESH)
    assert ended.state == "done"
    assert ended.comparison.fresh_seeds == ()
    assert "5 of 6 runs" in ended.comparison.verdict
    row = next(row for row in ended.comparison.rows if row.arm.confirms and row.arm.params)
    assert {"confirmed", "incomplete"} <= {*row.marks}
    assert toy.run(**FRESH).comparison.fresh_seeds == SEEDS


STOPPING: dict[str, Any] = {
    "early_terminate": {"type": "threshold", "lower": 0.3, "min_epochs": 2},
    "race_seeds": {"margin": 0.001},
}


@pytest.mark.parametrize("rule", STOPPING)
def test_what_confirms_is_never_stopped(toy: ToySweep, rule: str) -> None:
    # By either rule a run of this weight would be stopped; here nothing else can be chosen.
    weights = {"algorithm.kl_weight": {"values": [0.3, 3.0]}}
    search: Any = {"method": "random", "run_cap": 2, "parameters": weights}
    first = [{"algorithm.kl_weight": weight} for weight in (0.3, 3.0)]
    toy.run(**search, try_first=first, **FRESH, **{rule: STOPPING[rule]})
    fresh = [run for run in toy.tracked().values() if run.params.get("seed", "") in [*"234"]]
    assert [run.state for run in fresh] == ["finished"] * 2 * len(SEEDS)
    assert {t.state for t in toy.ledger().trials()} == {"complete", "pruned"}


def test_nothing_is_confirmed_where_nothing_was_chosen_or_nothing_trains(toy: ToySweep) -> None:
    toy.plan({f"{weight}/{seed}": [CRASH] for weight in (0.1, 0.3) for seed in (0, 1)})
    ended = toy.run(retries=0, breaker=0, baselines=[], **FRESH)
    assert ended.state == "failed"
    assert toy.ledger().recall("confirmations") == []
    assert sweep_status(toy.home, "toy").runs == 4
    alone: Any = {"trial": {"algorithm": "zero_shot"}, "parameters": {}, "baselines": []}
    ended = toy.run(name="zero", report={"model": False}, **alone, **FRESH)
    assert (ended.state, confirmed(ended.comparison)) == ("done", {})
    assert "confirm" not in ended.comparison.verdict.lower()


def test_a_choice_by_a_merge_is_judged_by_the_merge(toy: ToySweep) -> None:
    metric = {"name": "id/val/top1", "merge": "wise_ft@0.5"}
    compared = toy.run(metric=metric, baselines=["fine_tune"], **FRESH).comparison
    candidate = compared.verdicts[0].pair.candidate
    assert candidate.label == "car_ft kl_weight=0.3 (confirmed) + wise_ft@0.5"
    assert "car_ft kl_weight=0.3 + wise_ft@0.5 against fine_tune + wise_ft@0.5" in compared.verdict


def test_the_commands_count_and_show_it_and_a_soup(toy_cli: ToySweep, carft: Carft) -> None:
    file = toy_cli.file(**FRESH, after=[{"algorithm": "uniform_soup", "of": "fine_tune"}])
    plan = carft("check", file, "--json").json
    counts = ("runs", "to_confirm", "to_combine", "to_train")
    assert [plan[name] for name in counts] == [14, 6, 1, 6]
    printed = carft("check", file).out
    assert "and 6 runs that confirm what will be chosen" in printed
    assert "and 1 made of runs that will be done: uniform_soup of fine_tune" in printed
    carft("run", file, "--in-process")
    plan = carft("check", file, "--json").json
    counts = ("runs", "to_confirm", "to_combine", "done")
    assert [plan[name] for name in counts] == [14, 0, 0, 14]
    labels = [(row["role"], row["label"]) for row in plan["rows"]]
    assert labels[-3:] == [
        ("confirmation", "car_ft kl_weight=0.3 (confirmed)"),
        ("confirmation", "fine_tune (confirmed)"),
        ("soup", "uniform_soup of=fine_tune"),
    ]
    seen = sweep_status(toy_cli.home, "toy")
    assert (seen.runs, seen.runs_ended) == (14, 14)
    shown = carft("show", "toy", "--json").json
    items = shown["confirmations"]
    seeds = {item["algorithm"]: [run["seed"] for run in item["runs"]] for item in items}
    assert seeds == {"car_ft": [2, 3, 4], "fine_tune": [2, 3, 4]}
    assert [item["algorithm"] for item in shown["soups"]] == ["uniform_soup"]
    printed = carft("show", "toy").out
    assert "\nconfirmation of car_ft kl_weight=0.3\n  seed 2  done" in printed
    assert "\nsoup uniform_soup of=fine_tune\n  no seed  done" in printed
    assert "uniform_soup of=fine_tune" in carft("compare", "toy").out
    assert not any("a run that no sweep uses" in item.reason for item in waste(toy_cli.home))
    assert "has nothing left to do" in carft("resume", "toy").out
    assert len([*RunStore(toy_cli.home.runs).digests()]) == 14
