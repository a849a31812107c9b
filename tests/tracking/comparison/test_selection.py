"""Settings are chosen by validation alone, whole ones first, the earlier of equals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tracking.made_up import KL, metrics, run
from tracking.comparison.runs import Arm, RunRecord, group
from tracking.comparison.selection import select, select_each, select_merges
from tracking.comparison.spec import SelectionRule, looks_at_tests

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


def test_equal_values_go_to_the_earlier_trial() -> None:
    assert chosen(trials([[0.5, 0.5], [0.6, 0.6], [0.6, 0.6]])) == 1


def test_values_that_differ_by_rounding_only_are_equal() -> None:
    arms = trials([[0.1 + 0.2, 0.5], [0.3, 0.5], [0.3, 0.4]])
    assert 0.1 + 0.2 > 0.3
    choice = select(arms[::-1], SelectionRule(), SEEDS)  # the later one would be better by a hair
    assert choice is not None
    assert [arm.trial for arm in (choice.arm, *choice.tied)] == [1, 0]


def test_who_ties_with_the_choice_is_known_and_nobody_else() -> None:
    choice = select(
        trials([[0.5, 0.6], [0.6, 0.5], [0.5, 0.4], [0.55, 0.55]]), SelectionRule(), SEEDS
    )
    assert choice is not None
    assert choice.arm.trial == 0
    assert [arm.trial for arm in choice.tied] == [1, 3]


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


def test_nothing_is_chosen_when_everything_failed() -> None:
    assert chosen(trials([[None, None], [None, None]])) is None
    assert select([], SelectionRule(), SEEDS) is None


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


def test_strength_may_mean_smaller() -> None:
    rule = SelectionRule(within=0.005, strength={KL: -1})
    assert chosen(trials(VALUES, WEIGHTS), rule) == 0


def test_without_a_field_of_strength_the_margin_chooses_the_best() -> None:
    assert chosen(trials(VALUES, WEIGHTS), SelectionRule(within=0.1)) == 1
    assert chosen(trials(VALUES, WEIGHTS), SelectionRule(within=0.1, strength={"optim.x": 1})) == 1


def test_among_equally_strong_settings_the_better_value_is_chosen() -> None:
    rule = SelectionRule(within=0.1, strength={KL: +1})
    runs = [
        run("car_ft", seed, metrics(0.6, 0.3, val=value), trial=trial, params={KL: 1.0, "lr": lr})
        for trial, (value, lr) in enumerate([(0.61, 1e-4), (0.62, 1e-3)])
        for seed in SEEDS
    ]
    assert chosen(group(runs), rule) == 1


def test_strength_is_not_compared_across_algorithms() -> None:
    runs: list[RunRecord] = []
    for seed in SEEDS:
        runs += [
            run("fine_tune", seed, metrics(0.6, 0.3, val=0.66), trial=0),
            run("car_ft", seed, metrics(0.6, 0.3, val=0.65), trial=1, params={KL: 3.0}),
        ]
    assert chosen(group(runs), SelectionRule(within=0.05, strength={KL: +1})) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 0.5))
def test_a_margin_never_costs_more_than_itself(values: list[float], within: float) -> None:
    rule = SelectionRule(within=within, strength={KL: +1})
    choice = select(trials([[value, value] for value in values]), rule, SEEDS)
    assert choice is not None
    assert choice.value >= max(values) - within - 1e-9


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


@pytest.mark.parametrize("metric", ["id/val/top1", "id/val/nll", "train/loss", "ood/val/macro_f1"])
def test_validation_and_training_metrics_are_honest(metric: str) -> None:
    assert not looks_at_tests(metric)
    assert SelectionRule(metric=metric).name == "best_val"


def test_the_rule_is_named_as_the_sweep_file_names_it() -> None:
    assert SelectionRule(within=0.005).name == "within 0.005"
    assert (
        SelectionRule(metric="ood/mean/top1", oracle=True, within=0.1).name == "oracle, within 0.1"
    )


@pytest.mark.parametrize(
    "wrong", [{"within": -0.1}, {"within": math.nan}, {"strength": {KL: 2}}], ids=str
)
def test_a_rule_without_a_meaning_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"margin|strength"):
        SelectionRule(**wrong)


def test_each_algorithm_has_its_choice_and_fresh_runs_are_not_chosen_among() -> None:
    runs = [run("fine_tune", seed, metrics(0.6, 0.3)) for seed in SEEDS]
    runs += [run("car_ft", seed, metrics(0.5, 0.3), trial=0) for seed in SEEDS]
    runs += [run("car_ft", 7, metrics(0.9, 0.3), params={KL: 9.0}, role="confirmation")]
    found = select_each(group(runs), SelectionRule(), SEEDS)
    assert [(name, choice.value) for name, choice in found.items()] == [
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


def test_each_kind_of_merge_has_its_own_choice() -> None:
    merges = {
        "wise_ft@0.5": metrics(0.6, 0.3, val=0.7),
        "wise_ft@0.75": metrics(0.6, 0.3, val=0.6),
        "uniform_soup": metrics(0.6, 0.3, val=0.5),
    }
    arm = group([run("fine_tune", 0, metrics(0.6, 0.3), merges=merges)])[0]
    expected = {"uniform_soup": "uniform_soup", "wise_ft": "wise_ft@0.5"}
    for rule in (SelectionRule(), SelectionRule(within=0.1)):
        assert select_merges([arm], rule) == {arm.label: expected}


def test_a_trial_may_be_valued_by_one_of_its_merges() -> None:
    merges = [{"wise_ft@0.5": metrics(0.6, 0.3, val=value)} for value in (0.4, 0.8)]
    runs = [
        run("car_ft", 0, metrics(0.6, 0.3), trial=t, params={KL: t}, merges=merges[t])
        for t in range(2)
    ]
    choice = select(group(runs), SelectionRule(merge="wise_ft@0.5"), (0,))
    assert choice is not None
    assert (choice.arm.trial, choice.arm.merge, choice.value) == (1, "wise_ft@0.5", 0.8)
