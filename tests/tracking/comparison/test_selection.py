"""Which setting and alpha are selected, on what budgets, and what fresh seeds confirm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from carft_sweep.tracking.comparison import selection
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import Arm, RunRecord, group
from carft_sweep.tracking.comparison.selection import Budget, budgets, select, select_each
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule, looks_at_tests
from carft_sweep.tracking.report.formats import to_json
from tests.tracking.made_up import KL, bent, kl_sweep, known, metrics, run, zero_shot

SEEDS = (0, 1)
LR, FLYP, WORDS = "optim.lr", "algorithm.temperature", "prompts.contexts"


def trials(values: Sequence[Sequence[float | None]], weights: Sequence[float] = ()) -> list[Arm]:
    """One arm per trial, by its seeds' validation accuracies; None is a failed run."""
    runs = []
    for trial, seeds in enumerate(values):
        own: dict[str, Any] = {"params": {KL: weights[trial] if weights else float(trial)}}
        for seed, value in enumerate(seeds):
            measured = None if value is None else metrics(0.6, 0.3, val=value)
            runs.append(run("car_ft", seed, measured, trial=trial, **own))
    return list(group(runs))


def chosen(arms: Sequence[Arm], rule: SelectionRule | None = None) -> int | None:
    choice = select(arms, rule or SelectionRule(), SEEDS)
    return None if choice is None else choice.arm.trial


@pytest.mark.parametrize(
    ("values", "rule", "trial"),
    [
        ([[0.5, 0.7], [0.61, 0.61], [0.9, 0.2]], {}, 1),
        ([[0.5, 0.5], [0.4, 0.4]], {"goal": "minimize"}, 1),
        ([[0.9, None], [0.5, 0.5]], {}, 1),
        ([[math.nan, 0.9], [0.5, 0.5]], {}, 1),
        ([[math.nan, 0.9]], {}, None),
    ],
    ids=["mean", "loss", "lucky seed beside a failed one", "no number", "no number alone"],
)
def test_the_best_mean_over_all_seeds_is_chosen(
    values: list[list[float | None]], rule: dict[str, Any], trial: int | None
) -> None:
    assert chosen(trials(values), SelectionRule(**rule)) == trial


def test_values_that_differ_by_rounding_only_are_equal() -> None:
    assert 0.1 + 0.2 > 0.3
    arms = trials([[0.1 + 0.2, 0.5], [0.3, 0.5], [0.3, 0.4]])
    choice = known(select(arms[::-1], SelectionRule(), SEEDS))  # the later is better by a hair
    assert [arm.trial for arm in (choice.arm, *choice.tied)] == [1, 0]
    assert (choice.value, choice.complete) == (pytest.approx(0.4), True)


def test_without_a_whole_setting_the_one_with_most_seeds_stands_in() -> None:
    arms = trials([[0.9, None, None], [0.5, 0.5, None], [0.4, 0.6, None]])
    choice = known(select(arms, SelectionRule(), (0, 1, 2)))
    assert (choice.arm.trial, choice.complete) == (1, False)


def test_of_settings_that_keep_a_constraint_the_best_is_chosen() -> None:
    def setting(name: str, trial: int | None, val: float, ood: float) -> RunRecord:
        params = {} if trial is None else {KL: float(trial)}
        own = metrics(0.6, ood, val=val) | {"ood/val/top1": ood}
        return run(name, 0, own, trial=trial, params=params)

    low, middle, high = (
        setting("car_ft", trial, val, ood)
        for trial, (val, ood) in enumerate([(0.70, 0.4), (0.69, 0.5), (0.60, 0.6)])
    )
    base = setting("fine_tune", None, 0.70, 0.3)
    arms = group([low, middle, high, base])

    def rule(margin: float) -> SelectionRule:
        own = {"metric": "id/val/top1", "goal": "maximize", "of": "fine_tune", "margin": margin}
        return SelectionRule.model_validate({"metric": "ood/val/top1", "constraint": own})

    for margin, trial in ((0.0, 0), (0.01, 1), (0.5, 2)):
        choices = select_each(arms, selection.bounded(rule(margin), arms), (0,))
        assert choices["car_ft"].arm.trial == trial
    spec = ComparisonSpec(rule=rule(0.01), seeds=(0,))
    warnings = compare([low, middle, high, base], spec=spec).warnings
    assert "id/val/top1 as good as fine_tune's minus 0.01 (0.69)" in warnings[0]
    assert "no setting of car_ft has that" in compare([high, base], spec=spec).warnings[1]
    without = [arm for arm in arms if arm.algorithm != "fine_tune"]
    assert selection.bounded(rule(0.01), without).bound is None, "the constraint means nothing"


WEIGHTS = (0.1, 0.3, 1.0, 3.0)
VALUES = [[0.650, 0.650], [0.652, 0.652], [0.648, 0.648], [0.600, 0.600]]


@pytest.mark.parametrize(
    ("within", "field", "trial"),
    [
        *((None, KL, 1), (0.0, KL, 1), (0.003, KL, 1), (0.004, KL, 2), (0.01, KL, 2), (0.1, KL, 3)),
        *((0.1, None, 1), (0.1, "optim.x", 1)),
    ],
)
def test_within_a_margin_the_strongest_regularisation_is_chosen(
    within: float | None, field: str | None, trial: int
) -> None:
    rule = SelectionRule(within=within, strength={field: +1} if field else {})
    assert chosen(trials(VALUES, WEIGHTS), rule) == trial


def test_strength_is_not_compared_across_algorithms() -> None:
    runs = [run("fine_tune", seed, metrics(0.6, 0.3, val=0.66), trial=0) for seed in SEEDS]
    strong = {"trial": 1, "params": {KL: 3.0}}
    runs += [run("car_ft", seed, metrics(0.6, 0.3, val=0.65), **strong) for seed in SEEDS]
    assert chosen(group(runs), SelectionRule(within=0.05, strength={KL: +1})) == 0


def test_a_rule_without_a_meaning_is_refused_and_a_test_metric_unless_it_is_an_oracle() -> None:
    names = ("id/test/top1", "ood/mean/top1", "gap/top1", "gain/ood/top1", "ood/test/top1")
    for metric in (*names, "ood/val-2/nll"):
        assert looks_at_tests(metric)
        with pytest.raises(ValueError, match=r"selection: oracle"):
            SelectionRule(metric=metric)
        assert "oracle" in SelectionRule(metric=metric, oracle=True).name
    for wrong in ({"within": -0.1}, {"within": math.nan}, {"strength": {KL: 2}}):
        with pytest.raises(ValueError, match=r"margin|Input should be 1 or -1"):
            SelectionRule.model_validate(wrong)


def test_each_algorithm_has_its_choice_and_fresh_runs_are_not_chosen_among() -> None:
    runs = [run("fine_tune", seed, metrics(0.6, 0.3)) for seed in SEEDS]
    runs += [run("car_ft", seed, metrics(0.5, 0.3), trial=0) for seed in SEEDS]
    runs += [run("car_ft", 7, metrics(0.9, 0.3), params={KL: 9.0}, role="confirmation")]
    chosen = select_each(group(runs), SelectionRule(), SEEDS)
    assert {name: best.value for name, best in chosen.items()} == {"car_ft": 0.5, "fine_tune": 0.6}


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
def test_alpha_is_chosen_by_validation_unless_by_an_oracle(rule: SelectionRule, label: str) -> None:
    vals, oods = (0.60, 0.64, 0.65, 0.65), (0.50, 0.45, 0.40, 0.30)  # want other alphas
    measured = [metrics(0.6, ood, val=val) for val, ood in zip(vals, oods, strict=True)]
    merges = {f"wise_ft@{(n + 1) / 4:g}": own for n, own in enumerate(measured)}
    runs = [run("fine_tune", seed, metrics(0.6, 0.3), merges=merges) for seed in SEEDS]
    arm = group(runs)[0]
    assert selection.select_merges([arm], rule) == {arm.key: {"wise_ft": label}}


def test_a_trial_may_be_valued_by_one_of_its_merges() -> None:
    runs = []
    for trial, value in enumerate((0.4, 0.8)):
        more = {"params": {KL: trial}, "merges": {"wise_ft@0.5": metrics(0.6, 0.3, val=value)}}
        runs.append(run("car_ft", 0, metrics(0.6, 0.3), trial=trial, **more))
    choice = known(select(group(runs), SelectionRule(merge="wise_ft@0.5"), (0,)))
    assert (choice.arm.trial, choice.arm.merge, choice.value) == (1, "wise_ft@0.5", 0.8)


def tried(algorithm: str, params: Sequence[dict[str, float]], **more: object) -> list[RunRecord]:
    """A trial with one run at each point."""
    return [
        run(algorithm, 0, metrics(0.6 - t / 100, 0.3), trial=t, params=p, **more)
        for t, p in enumerate(params)
    ]


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
    equal = tried("flyp", [{FLYP: float(t)} for t in range(20)])
    begin = "unequal tuning budgets, which favour what was tried more: car_ft 20 settings (20 "
    for theirs, warnings in ((short, [f"{begin}runs), flyp 4 settings (4 runs)"]), (equal, [])):
        every = compare([*long, *theirs], sweep="s").warnings
        assert [text for text in every if "tuning budgets" in text] == warnings


GRID = [{KL: k, LR: lr} for k in (1.0, 3.0) for lr in (1.0, 2.0)]


@pytest.mark.parametrize(
    ("ours", "theirs", "equal"),
    [
        pytest.param([{KL: 1.0}, {KL: 3.0}], [{}], True, id="own field"),
        pytest.param(GRID, [{LR: 1.0}, {LR: 2.0}], True, id="grid"),
        pytest.param(GRID, [{LR: 1.0}], False, id="half a grid"),
        pytest.param([{KL: 1.0}, {KL: 3.0}], [{FLYP: 1.0}], False, id="own fields"),
        pytest.param([{KL: 1.0}, {KL: 3.0}], [{FLYP: 1.0}, {FLYP: 2.0}], True, id="as many"),
        pytest.param([{LR: 1.0}, {LR: 2.0}], [{LR: 1.0}], False, id="shared"),
        pytest.param([{LR: 1.0}, {LR: 2.0}], [{FLYP: 1.0}, {FLYP: 2.0}], True, id="own for shared"),
        pytest.param([{WORDS: 1.0}, {WORDS: 2.0}], [{}], True, id="contexts"),
    ],
)
def test_fields_that_only_one_of_two_has_do_not_count(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], equal: bool
) -> None:
    arms = group([*tried("car_ft", ours), *tried("flyp", theirs)])
    assert selection.less_tried(arms) == ({} if equal else {"flyp": {"car_ft"}})


FRESH = (5, 6, 7, 8, 9)
WOBBLE = (0.0, 0.003, -0.002, 0.001, 0.004)


def fresh(
    algorithm: str, test: float, ood: float, seeds: Sequence[int] = FRESH, **more: Any
) -> list[RunRecord]:
    runs = []
    for seed, w in zip(seeds, WOBBLE, strict=False):
        own = (test + w, ood + w / 3)
        more |= {"role": "confirmation", "merges": bent(*own)}
        runs.append(run(algorithm, seed, metrics(*own), **more))
    return runs


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
    assert known(verdict.pair.ood).mean == pytest.approx(0.001)
    assert honest.fresh_seeds == FRESH
    claim = next(text for text in honest.answer.lines if " against fine_tune: " in text)
    assert "car_ft kl_weight=1 " in claim
    assert "over 5 fresh seeds" in honest.verdict
    assert "(confirmed)" not in honest.verdict
    text = "The settings were chosen on seeds 0 to 4 and judged on seeds 5 to 9, which no choice "
    assert honest.statistics[-1] == f"{text}has seen."


def test_the_whole_sweep_stays_and_fresh_rows_are_marked() -> None:
    before, after = compare(kl_sweep(), sweep="s"), compared(CONFIRMED)
    tuned = replace(after, rows=tuple(row for row in after.rows if not row.arm.confirms))
    assert to_json(tuned)["rows"] == to_json(before)["rows"]
    for name in ("selected", "seeds", "rivals", "budgets"):
        assert getattr(after, name) == getattr(before, name), name
    confirmed = [row for row in after.rows if row.arm.confirms]
    assert all(row.marks == ("confirmed",) and not row.selected for row in confirmed)
    labels = ["car_ft kl_weight=1 (confirmed)", "fine_tune (confirmed)"]
    assert [row.arm.label for row in confirmed if row.arm.merge is None] == labels
    # The alpha is the one chosen on the other seeds.
    alphas = {row.arm.label for row in after.rows if row.chosen and row.arm.merge}
    assert {f"fine_tune{of} + wise_ft@0.75" for of in ("", " (confirmed)")} <= alphas
    assert {curve.arm.label for curve in after.curves} == {*labels}


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
def test_while_one_lacks_the_seeds_of_the_choice_judge(more: list[RunRecord], done: int) -> None:
    comparison = compared(more)
    assert comparison.fresh_seeds == ()
    assert comparison.verdicts[0].pair.seeds == (0, 1, 2, 3, 4)
    *before, last = comparison.statistics
    assert before == [*compare(kl_sweep(), sweep="s").statistics]
    text = f"Not confirmed yet: {done} of 10 runs on seeds 5 to 9 are done, so this is judged on "
    assert last == f"{text}the seeds that the settings were chosen on."
