"""Which setting and alpha are selected, on what budgets, and what fresh seeds confirm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import Arm, RunRecord, group
from carft_sweep.tracking.comparison.selection import (
    Budget,
    bounded,
    budgets,
    less_tried,
    select,
    select_each,
    select_merges,
)
from carft_sweep.tracking.comparison.spec import (
    ComparisonSpec,
    Constraint,
    SelectionRule,
    looks_at_tests,
)
from carft_sweep.tracking.report.formats import to_json
from tests.tracking.made_up import KL, bent, kl_sweep, metrics, run, zero_shot

SEEDS = (0, 1)


def trials(values: Sequence[Sequence[float | None]], weights: Sequence[float] = ()) -> list[Arm]:
    """One arm per trial, by its seeds' validation accuracies; None is a failed run."""
    runs = [
        run(
            "car_ft",
            seed,
            None if value is None else metrics(0.6, 0.3, val=value),
            trial=trial,
            params={KL: weights[trial] if weights else float(trial)},
        )
        for trial, seeds in enumerate(values)
        for seed, value in enumerate(seeds)
    ]
    return list(group(runs))


def chosen(arms: Sequence[Arm], rule: SelectionRule | None = None) -> int | None:
    choice = select(arms, rule or SelectionRule(), SEEDS)
    return None if choice is None else choice.arm.trial


def test_the_highest_mean_over_seeds_is_chosen() -> None:
    choice = select(trials([[0.5, 0.7], [0.61, 0.61], [0.9, 0.2]]), SelectionRule(), SEEDS)
    assert choice is not None
    assert choice.arm.trial == 1
    assert choice.value == pytest.approx(0.61)
    assert choice.complete


def test_a_loss_is_chosen_at_its_lowest() -> None:
    arms = trials([[0.5, 0.5], [0.4, 0.4]])
    assert chosen(arms, SelectionRule(goal="minimize")) == 1


def test_values_that_differ_by_rounding_only_are_equal() -> None:
    arms = trials([[0.1 + 0.2, 0.5], [0.3, 0.5], [0.3, 0.4]])
    assert 0.1 + 0.2 > 0.3
    choice = select(arms[::-1], SelectionRule(), SEEDS)  # the later one would be better by a hair
    assert choice is not None
    assert [arm.trial for arm in (choice.arm, *choice.tied)] == [1, 0]


def test_a_lucky_seed_beside_a_failed_one_is_not_chosen() -> None:
    assert chosen(trials([[0.9, None], [0.5, 0.5]])) == 1


def test_a_value_that_is_not_a_number_is_not_chosen() -> None:
    assert chosen(trials([[math.nan, 0.9], [0.5, 0.5]])) == 1
    assert chosen(trials([[math.nan, 0.9]])) is None


def test_without_a_whole_setting_the_one_with_most_seeds_stands_in() -> None:
    arms = trials([[0.9, None, None], [0.5, 0.5, None], [0.4, 0.6, None]])
    choice = select(arms, SelectionRule(), (0, 1, 2))
    assert choice is not None
    assert (choice.arm.trial, choice.complete) == (1, False)


def test_of_settings_that_keep_a_constraint_the_best_is_chosen() -> None:
    def setting(name: str, trial: int | None, val: float, ood: float) -> RunRecord:
        more = {"params": {KL: float(trial)}, "trial": trial} if trial is not None else {}
        own = metrics(0.6, ood, val=val) | {"ood/val/top1": ood}
        return run(name, 0, own, **({"role": "baseline"} if trial is None else {}), **more)

    low, middle, high = (
        setting("car_ft", trial, val, ood)
        for trial, (val, ood) in enumerate([(0.70, 0.4), (0.69, 0.5), (0.60, 0.6)])
    )
    arms = group([low, middle, high, setting("fine_tune", None, 0.70, 0.3)])
    own = Constraint(metric="id/val/top1", goal="maximize", of="fine_tune", margin=0.01)
    rule = SelectionRule(metric="ood/val/top1", constraint=own)
    picked = {
        margin: select_each(
            arms,
            bounded(
                rule.model_copy(update={"constraint": own.model_copy(update={"margin": margin})}),
                arms,
            ),
            (0,),
        )["car_ft"].arm.trial
        for margin in (0.0, 0.01, 0.5)
    }
    assert picked == {0.0: 0, 0.01: 1, 0.5: 2}
    spec = ComparisonSpec(rule=rule, seeds=(0,))
    said = compare([low, middle, high, setting("fine_tune", None, 0.70, 0.3)], spec=spec).warnings
    assert "id/val/top1 as good as fine_tune's minus 0.01 (0.69)" in said[0]
    nobody = [high, setting("fine_tune", None, 0.70, 0.3)]
    assert "no setting of car_ft has that" in compare(nobody, spec=spec).warnings[1]
    none = bounded(rule, [arm for arm in arms if arm.algorithm != "fine_tune"])
    assert none.bound is None, "without its reference the constraint means nothing"


WEIGHTS = (0.1, 0.3, 1.0, 3.0)
VALUES = [[0.650, 0.650], [0.652, 0.652], [0.648, 0.648], [0.600, 0.600]]


@pytest.mark.parametrize(
    ("within", "trial"), [(None, 1), (0.0, 1), (0.003, 1), (0.004, 2), (0.01, 2), (0.1, 3)]
)
def test_within_a_margin_the_strongest_regularisation_is_chosen(
    within: float | None, trial: int
) -> None:
    rule = SelectionRule(within=within, strength={KL: +1})
    assert chosen(trials(VALUES, WEIGHTS), rule) == trial


def test_without_a_field_of_strength_the_margin_chooses_the_best() -> None:
    assert chosen(trials(VALUES, WEIGHTS), SelectionRule(within=0.1)) == 1
    assert chosen(trials(VALUES, WEIGHTS), SelectionRule(within=0.1, strength={"optim.x": 1})) == 1


def test_strength_is_not_compared_across_algorithms() -> None:
    runs: list[RunRecord] = []
    for seed in SEEDS:
        runs += [
            run("fine_tune", seed, metrics(0.6, 0.3, val=0.66), trial=0),
            run("car_ft", seed, metrics(0.6, 0.3, val=0.65), trial=1, params={KL: 3.0}),
        ]
    assert chosen(group(runs), SelectionRule(within=0.05, strength={KL: +1})) == 0


@pytest.mark.parametrize(
    "metric",
    [
        "id/test/top1",
        "ood/mean/top1",
        "gap/top1",
        "gain/ood/top1",
        "ood/test/top1",
        "ood/val-2/nll",
    ],
)
def test_a_test_metric_is_refused_unless_an_oracle_is_asked_for(metric: str) -> None:
    assert looks_at_tests(metric)
    with pytest.raises(ValueError, match=r"selection: oracle"):
        SelectionRule(metric=metric)
    assert "oracle" in SelectionRule(metric=metric, oracle=True).name


@pytest.mark.parametrize(
    "wrong", [{"within": -0.1}, {"within": math.nan}, {"strength": {KL: 2}}], ids=str
)
def test_a_rule_without_a_meaning_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"margin|Input should be 1 or -1"):
        SelectionRule(**wrong)


def test_each_algorithm_has_its_choice_and_fresh_runs_are_not_chosen_among() -> None:
    runs = [run("fine_tune", seed, metrics(0.6, 0.3)) for seed in SEEDS]
    runs += [run("car_ft", seed, metrics(0.5, 0.3), trial=0) for seed in SEEDS]
    runs += [run("car_ft", 7, metrics(0.9, 0.3), params={KL: 9.0}, role="confirmation")]
    selections = select_each(group(runs), SelectionRule(), SEEDS)
    assert [(name, choice.value) for name, choice in selections.items()] == [
        ("car_ft", 0.5),
        ("fine_tune", 0.6),
    ]


def merged_arm(val_by_alpha: dict[float, float], ood_by_alpha: dict[float, float]) -> Arm:
    merges = {
        f"wise_ft@{alpha:g}": metrics(0.6, ood_by_alpha[alpha], val=val)
        for alpha, val in val_by_alpha.items()
    }
    runs = [run("fine_tune", seed, metrics(0.6, 0.3), merges=merges) for seed in SEEDS]
    return group(runs)[0]


VAL_BY_ALPHA = {0.25: 0.60, 0.5: 0.64, 0.75: 0.65, 1.0: 0.65}
OOD_BY_ALPHA = {0.25: 0.50, 0.5: 0.45, 0.75: 0.40, 1.0: 0.30}


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        (SelectionRule(), "wise_ft@0.75"),
        (SelectionRule(within=0.02), "wise_ft@0.5"),
        (SelectionRule(metric="train/loss", goal="minimize"), "wise_ft@0.75"),
        (SelectionRule(metric="ood/mean/top1", oracle=True), "wise_ft@0.25"),
    ],
    ids=["val", "within", "metric that merges lack", "oracle"],
)
def test_alpha_is_chosen_by_validation_unless_an_oracle_is_asked_for(
    rule: SelectionRule, label: str
) -> None:
    arm = merged_arm(VAL_BY_ALPHA, OOD_BY_ALPHA)
    assert select_merges([arm], rule) == {arm.label: {"wise_ft": label}}


def test_a_trial_may_be_valued_by_one_of_its_merges() -> None:
    merges = [{"wise_ft@0.5": metrics(0.6, 0.3, val=value)} for value in (0.4, 0.8)]
    runs = [
        run("car_ft", 0, metrics(0.6, 0.3), trial=t, params={KL: t}, merges=merges[t])
        for t in range(2)
    ]
    choice = select(group(runs), SelectionRule(merge="wise_ft@0.5"), (0,))
    assert choice is not None
    assert (choice.arm.trial, choice.arm.merge, choice.value) == (1, "wise_ft@0.5", 0.8)


LR, FLYP = "optim.lr", "algorithm.temperature"


def tried(algorithm: str, params: Sequence[dict[str, float]], **more: object) -> list[RunRecord]:
    """A trial with one run at each point."""
    return [
        run(algorithm, 0, metrics(0.6 - t / 100, 0.3), trial=t, params=p, **more)
        for t, p in enumerate(params)
    ]


def said(*groups: Sequence[RunRecord]) -> list[str]:
    warnings = compare([run for runs in groups for run in runs], sweep="s").warnings
    return [text for text in warnings if "tuning budgets" in text]


def test_settings_and_runs_are_counted_for_each_algorithm_that_trains() -> None:
    runs = [zero_shot(), *tried("car_ft", [{KL: 1.0}, {KL: 2.0}])]
    runs += [
        run("car_ft", 0, trial=2, params={KL: 3.0}, state="pruned"),
        run("car_ft", 1, trial=2, params={KL: 3.0}, state="missing"),
        run("car_ft", 0, trial=3, params={KL: 4.0}, state="missing"),
        run("fine_tune", 0, metrics(0.6, 0.3)),
        run("fine_tune", 1, state="failed"),
        run("fine_tune", 7, metrics(0.6, 0.3), role="confirmation"),
    ]
    assert budgets(group(runs)) == (Budget("fine_tune", 1, 2), Budget("car_ft", 3, 3))


def test_two_searches_of_different_length_are_told_with_their_numbers() -> None:
    long = tried("car_ft", [{KL: float(k), LR: float(k)} for k in range(20)])
    short = tried("flyp", [{FLYP: float(t), LR: float(t)} for t in range(4)])
    assert said(long, short) == [
        "unequal tuning budgets, which favour what was tried more: car_ft 20 settings (20 "
        "runs), flyp 4 settings (4 runs)"
    ]
    assert said(long, tried("flyp", [{FLYP: float(t)} for t in range(20)])) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "equal"),
    [
        ([{KL: 1.0}, {KL: 3.0}], [{}], True),
        ([{KL: k, LR: x} for k in (1.0, 3.0) for x in (1.0, 2.0)], [{LR: 1.0}, {LR: 2.0}], True),
        ([{KL: k, LR: x} for k in (1.0, 3.0) for x in (1.0, 2.0)], [{LR: 1.0}], False),
        ([{KL: 1.0}, {KL: 3.0}], [{FLYP: 1.0}], False),
        ([{KL: 1.0}, {KL: 3.0}], [{FLYP: 1.0}, {FLYP: 2.0}], True),
        ([{LR: 1.0}, {LR: 2.0}], [{LR: 1.0}], False),
        ([{LR: 1.0}, {LR: 2.0}], [{FLYP: 1.0}, {FLYP: 2.0}], True),
        ([{"prompts.contexts": 1.0}, {"prompts.contexts": 2.0}], [{}], True),
    ],
    ids=[
        "own field",
        "grid",
        "half a grid",
        "own fields",
        "as many",
        "shared",
        "own for shared",
        "contexts",
    ],
)
def test_fields_that_only_one_of_two_has_do_not_count(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], equal: bool
) -> None:
    arms = group([*tried("car_ft", ours), *tried("flyp", theirs)])
    assert less_tried(arms) == ({} if equal else {"flyp": {"car_ft"}})


FRESH = (5, 6, 7, 8, 9)
WOBBLE = (0.0, 0.003, -0.002, 0.001, 0.004)


def fresh(
    algorithm: str, test: float, ood: float, seeds: Sequence[int] = FRESH, **more: Any
) -> list[RunRecord]:
    return [
        run(
            algorithm,
            seed,
            metrics(test + w, ood + w / 3),
            role="confirmation",
            merges=bent(test + w, ood + w / 3),
            **more,
        )
        for seed, w in zip(seeds, WOBBLE, strict=False)
    ]


CHOSEN: dict[str, Any] = {"params": {KL: 1.0}}
CONFIRMED = [*fresh("fine_tune", 0.65, 0.34), *fresh("car_ft", 0.65, 0.341, **CHOSEN)]


def compared(more: Sequence[RunRecord], seeds: tuple[int, ...] | None = FRESH) -> Comparison:
    return compare([*kl_sweep(), *more], ComparisonSpec(confirm_seeds=seeds), sweep="s")


@pytest.mark.parametrize("seeds", [FRESH, None], ids=["asked", "those that occur"])
def test_the_fresh_runs_alone_are_judged(seeds: tuple[int, ...] | None) -> None:
    lucky, honest = compare(kl_sweep(), sweep="s"), compared(CONFIRMED, seeds)
    assert lucky.verdicts[0].outcome == "better"
    verdict = honest.verdicts[0]
    assert (verdict.outcome, verdict.pair.seeds) == ("no_spread", FRESH)
    assert verdict.pair.ood is not None
    assert verdict.pair.ood.mean == pytest.approx(0.001)
    assert honest.fresh_seeds == FRESH
    claim = next(text for text in honest.answer.lines if " against fine_tune: " in text)
    assert "car_ft kl_weight=1 " in claim
    assert "over 5 fresh seeds" in honest.verdict
    assert "(confirmed)" not in honest.verdict
    assert honest.statistics[-1] == (
        "The settings were chosen on seeds 0 to 4 and judged on seeds 5 to 9, which no choice has "
        "seen."
    )


def test_the_whole_sweep_stays_and_fresh_rows_are_marked() -> None:
    before, after = compare(kl_sweep(), sweep="s"), compared(CONFIRMED)
    tuned = [row for row in after.rows if not row.arm.confirms]
    rows = [
        row
        for comparison in (replace(after, rows=tuple(tuned)), before)
        for row in to_json(comparison)["rows"]
    ]
    assert rows[: len(tuned)] == rows[len(tuned) :]
    assert after.selected == before.selected
    assert after.seeds == before.seeds
    assert after.rivals == before.rivals
    assert after.budgets == before.budgets
    confirmed = [row for row in after.rows if row.arm.confirms]
    assert all(row.marks == ("confirmed",) for row in confirmed)
    assert [row.arm.label for row in confirmed if row.arm.merge is None] == [
        "car_ft kl_weight=1 (confirmed)",
        "fine_tune (confirmed)",
    ]
    assert not any(row.selected for row in confirmed)


def test_the_alpha_is_the_one_chosen_on_the_other_seeds() -> None:
    comparison = compared(CONFIRMED)
    alphas = {
        row.arm.label: row.arm.merge for row in comparison.rows if row.chosen and row.arm.merge
    }
    assert alphas["fine_tune (confirmed) + wise_ft@0.75"] == "wise_ft@0.75"
    assert "fine_tune + wise_ft@0.75" in alphas
    assert {curve.label for curve in comparison.curves} == {
        "fine_tune (confirmed)",
        "car_ft kl_weight=1 (confirmed)",
    }


@pytest.mark.parametrize(
    ("more", "done"),
    [
        ([], 0),
        (fresh("car_ft", 0.65, 0.341, **CHOSEN), 5),
        (CONFIRMED[:-1], 9),
        ([*CONFIRMED[:-1], run("car_ft", 9, role="confirmation", **CHOSEN)], 9),
        ([*CONFIRMED[:5], *fresh("car_ft", 0.65, 0.341, params={KL: 3.0})], 5),
    ],
    ids=["none", "one algorithm", "a seed less", "a failed seed", "another setting"],
)
def test_as_long_as_one_is_lacking_the_seeds_of_the_choice_are_judged(
    more: list[RunRecord], done: int
) -> None:
    comparison = compared(more)
    assert comparison.fresh_seeds == ()
    assert comparison.verdicts[0].pair.seeds == (0, 1, 2, 3, 4)
    assert comparison.statistics[:-1] == compare(kl_sweep(), sweep="s").statistics
    assert comparison.statistics[-1] == (
        f"Not confirmed yet: {done} of 10 runs on seeds 5 to 9 are done, so this is judged on the "
        "seeds that the settings were chosen on."
    )
