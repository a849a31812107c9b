"""The answer says what to use, how sure that is, and what each varied field does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.effects import Effect
from carft_sweep.tracking.comparison.runs import RunRecord, Scalar
from carft_sweep.tracking.comparison.sentences import with_interval
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.comparison.statistics import ALPHA, Estimate, PairedTest
from carft_sweep.tracking.report.formats import to_json
from tests.tracking.five_seeds import FINE_TUNE, HIGH, LOW, NEAR, STEADY, compared
from tests.tracking.made_up import KL, arm, bent, kl_sweep, known, metrics, run, zero_shot

LR = "optim.lr"
WORDS = "prompts.contexts"
WOBBLE = [0.0, 0.004, -0.003, 0.002, -0.001]


def test_the_answer_says_each_thing_once_with_its_interval() -> None:
    comparison = compared([zero_shot()], FINE_TUNE, arm("car_ft", NEAR, HIGH, trial=0))
    claim, strongest = comparison.answer.lines
    assert claim.startswith("BETTER: car_ft against fine_tune: OOD mean +2.01 pp [")
    assert strongest.startswith(
        "Highest OOD mean of the 2 of 3 models that keep the ID test of fine_tune within 0.5 pp: "
        "car_ft (OOD mean 36.0, ID test 65.0), picked by test data, and also the selected one; "
        "+2.01 pp ["
    )
    assert strongest.endswith("] against the next, fine_tune.")
    assert comparison.verdict == " ".join((*comparison.answer.lines, *comparison.statistics))
    assert comparison.verdict.count("+2.01 pp") == 2
    for line in compare(kl_sweep(3), sweep="s").answer.lines[:2]:
        assert line.startswith("UNDECIDED: ")
        assert "3 seeds, and a claim needs 5" in line


def test_the_strongest_has_the_highest_ood_of_what_keeps_id() -> None:
    lower = [value - 0.006 for value in NEAR]
    robust = arm("flyp", lower, [value + 0.02 for value in HIGH], trial=1)
    comparison = compared([zero_shot()], FINE_TUNE, robust)
    strongest = known(comparison.answer.strongest)
    # Zero-shot and flyp have a higher OOD mean, and an ID test below the margin.
    assert (strongest.arm.label, strongest.eligible, strongest.models) == ("fine_tune", 1, 3)
    assert comparison.answer.lines[1] == (
        "Highest OOD mean of the 1 of 3 models that keep the ID test of fine_tune within 0.5 pp: "
        "fine_tune (OOD mean 34.0, ID test 65.0), picked by test data, and not the selected one."
    )
    assert compared(FINE_TUNE).answer.lines[-1].endswith("picked by test data.")
    within = arm("flyp", [value - 0.004 for value in NEAR], HIGH, trial=1)
    assert known(compared(FINE_TUNE, within).answer.strongest).arm.label == "flyp"


def test_a_merged_model_may_be_the_strongest_and_is_not_selected_for_it() -> None:
    merges = {"wise_ft@0.5": metrics(0.655, 0.40, val=0.66)}
    tuned = arm("fine_tune", STEADY, LOW, merges=merges)
    comparison = compared([zero_shot()], tuned, arm("car_ft", NEAR, HIGH, trial=0))
    assert known(comparison.answer.strongest).arm.label == "fine_tune + wise_ft@0.5"
    sentence = "fine_tune + wise_ft@0.5 (OOD mean 40.0, ID test 65.5), picked by test data, and not"
    assert sentence in comparison.verdict
    assert known(comparison.selected).arm.label == "car_ft"
    assert [row.arm.label for row in comparison.rows if row.selected] == ["car_ft"]


def test_where_the_reference_is_selected_the_best_rival_is_compared_with_it() -> None:
    comparison = compared(
        arm("fine_tune", [value + 0.01 for value in STEADY], LOW, trial=0),
        arm("flyp", [value - 0.01 for value in NEAR], HIGH, trial=1),
        arm("car_ft", NEAR, HIGH, trial=2),
    )
    assert known(comparison.selected).arm.label == "fine_tune"
    assert known(comparison.answer.verdict).pair.candidate.label == "car_ft"


def test_without_shifts_the_strongest_is_so_in_distribution() -> None:
    runs = [run("fine_tune", seed, metrics(test, None)) for seed, test in enumerate(STEADY)]
    runs += [run("car_ft", seed, metrics(test + 0.02, None)) for seed, test in enumerate(NEAR)]
    begin = "Highest ID test of 2 models: car_ft (ID test 67.0), picked by test data; +2"
    assert compared(runs).answer.lines[-1].startswith(begin)


def test_the_answer_on_fresh_seeds_is_of_these_alone() -> None:
    fresh = []
    for seed, d in zip(range(5, 10), [0, 0.004, -0.003, 0.002, 0.001], strict=True):
        tuned, held = (metrics(0.65 + d, ood + d) for ood in (0.34, 0.345))
        fresh.append(run("fine_tune", seed, tuned, role="confirmation"))
        fresh.append(run("car_ft", seed, held, role="confirmation", params={KL: 1.0}))
    spec: dict[str, object] = {"confirm_seeds": (5, 6, 7, 8, 9), "seeds": (0, 1, 2, 3, 4)}
    comparison = compared(kl_sweep(), fresh, **spec)
    strongest = known(comparison.answer.strongest)
    assert strongest.arm.confirms
    assert known(strongest.verdict).seeds == (5, 6, 7, 8, 9)
    picked = "car_ft kl_weight=1 (OOD mean 34.6, ID test 65.1), picked by test data, and also"
    assert picked in comparison.verdict
    assert "on these seeds" not in " ".join(comparison.answer.lines)
    # The field's effect is of the whole sweep, on the seeds that all its settings have.
    (effect,) = comparison.answer.effects
    assert len(effect.levels) == 4


def test_the_curve_comes_first_and_every_number_of_a_line_is_in_the_json() -> None:
    comparison = compare(kl_sweep(), sweep="s")
    of_curve, first = known(comparison.answer.curve), comparison.answer.lines[0]
    assert of_curve.pair.candidate.label == "car_ft kl_weight=1"
    begin = "BETTER CURVE: car_ft kl_weight=1 beats fine_tune, both with WiSE-FT: OOD mean +"
    assert first.startswith(begin)
    assert len(first.split()) <= 33
    document = json.loads(json.dumps(to_json(comparison), allow_nan=False))
    answer = document["answer"]
    assert answer["lines"] == [*comparison.answer.lines]
    strongest = answer["strongest"]
    means = {row["label"]: row["metrics"]["ood/mean/top1"]["mean"] for row in document["rows"]}
    assert strongest["endpoint"]["mean"] == means[strongest["label"]]
    assert strongest["runner_up"]["endpoint"]["mean"] == means[strongest["runner_up"]["label"]]
    assert strongest["label"] != strongest["runner_up"]["label"]
    assert answer["candidate"] == "car_ft kl_weight=1"
    test = next(test for test in document["tests"] if test["candidate"] == answer["candidate"])
    (curve,) = document["curves"]
    assert curve["state"] == "BETTER CURVE"
    assert curve["gain"]["mean"] == known(of_curve.pair.gain).mean
    tested = [test[metric] for metric in ("ood/mean/top1", "id/test/top1")]
    unmerged = [number for own in tested for number in (own["mean"], *own["interval"])]
    sides = ([curve["difference"], *curve["interval"]], unmerged)
    for line, numbers in zip(comparison.answer.lines, sides, strict=False):
        printed = re.findall(r"[+-]\d+\.\d\d", line)
        assert printed == [f"{100 * number:+.2f}" for number in numbers]


def test_wise_ft_at_alpha_one_is_no_row_of_its_own() -> None:
    def with_end(best: str, test: float, ood: float) -> dict[str, dict[str, float]]:
        merges = {**bent(test, ood), "wise_ft@1": metrics(test, ood)}
        merges[best] = merges[best] | {"id/val/top1": 0.9}
        return merges

    runs = [zero_shot()]
    for seed, (test, ood) in enumerate(zip(STEADY, LOW, strict=True)):
        tuned, held = with_end("wise_ft@1", test, ood), with_end("wise_ft@0.5", test, ood)
        runs.append(run("fine_tune", seed, metrics(test, ood), merges=tuned))
        runs.append(run("car_ft", seed, metrics(test, ood), merges=held, trial=0))
    comparison = compare(runs, sweep="s")
    labels = {row.arm.label: row for row in comparison.rows}
    assert not any(label.endswith("@1") for label in labels)
    # Alpha 0.5, which nobody chooses, is always on show.
    chosen = [label for label, row in labels.items() if "fine_tune + " in label and row.chosen]
    assert chosen == ["fine_tune + wise_ft@0.5"]
    assert labels["car_ft + wise_ft@0.5"].chosen
    (curve,) = (curve for curve in comparison.curves if curve.arm.label == "fine_tune")
    assert curve.points[-1].alpha == 1
    selected_by_it = compare(runs, ComparisonSpec(rule=SelectionRule(merge="wise_ft@1")), sweep="s")
    assert any(row.arm.merge == "wise_ft@1" and row.selected for row in selected_by_it.rows)


def test_rounding_neither_leaves_out_the_strongest_nor_makes_it() -> None:
    assert 0.035 - 0.005 > 0.03
    assert 0.1 + 0.2 > 0.3
    at_the_margin = arm("flyp", [0.03] * 5, [0.3] * 5, trial=1)
    later = arm("car_ft", [0.035] * 5, [0.1 + 0.2] * 5, trial=2)
    for oods, label in ((LOW, "fine_tune"), ([0.2] * 5, "flyp")):
        comparison = compared(arm("fine_tune", [0.035] * 5, oods), at_the_margin, later)
        strongest = known(comparison.answer.strongest)
        assert (strongest.eligible, strongest.models, strongest.arm.label) == (3, 3, label)


def sweep(
    points: Sequence[dict[str, Scalar]],
    accuracies: Callable[[dict[str, Scalar]], tuple[float, float]],
    seeds: int = 5,
) -> tuple[Comparison, str]:
    """CAR-FT at each point, seeds apart by WOBBLE and noise of their own; what is said last."""
    rng = np.random.default_rng(0)
    runs: list[RunRecord] = [zero_shot()]
    for trial, point in enumerate(points):
        test, ood = accuracies(point)
        for seed in range(seeds):
            a, b = rng.normal(0, 0.001, 2)
            measured = metrics(test + WOBBLE[seed] + a, ood + WOBBLE[seed] + b)
            runs.append(run("car_ft", seed, measured, trial=trial, params=point))
    comparison = compare(runs, sweep="s")
    return comparison, comparison.answer.lines[-1]


def over(*weights: float) -> list[dict[str, Scalar]]:
    return [{KL: weight} for weight in weights]


def only(comparison: Comparison) -> Effect:
    (effect,) = comparison.answer.effects
    return effect


def test_the_lowest_value_is_compared_with_the_highest_paired_by_seed() -> None:
    points = over(10.0, 0.3, 1.0)
    comparison, line = sweep(points, lambda point: (0.6, 0.38 + 0.002 * float(point[KL] or 0)))
    effect = only(comparison)
    assert [level.value for level in effect.levels] == [0.3, 1.0, 10.0]
    runs = {row.arm.label: row.arm for row in comparison.rows}
    values = [runs[f"car_ft kl_weight={kl}"].values("ood/mean/top1") for kl in ("10", "0.3")]
    expected = [values[0][seed] - values[1][seed] for seed in range(5)]
    assert effect.difference.differences == pytest.approx(expected)
    assert effect.interval == pytest.approx(Estimate(tuple(expected)).ci95)
    assert line.startswith("kl_weight 0.3 to 10: OOD mean rises from 38.")
    for words in (
        "; ID test is unchanged within 0.5 pp, ",
        with_interval(effect.difference.mean, effect.interval),
        "]; on these test images, over 5 seeds; ",
        " is selected by id/val/top1.",
    ):
        assert words in line


def test_a_fall_of_id_is_said_and_the_selected_end_is_called_so() -> None:
    def accuracies(point: dict[str, Scalar]) -> tuple[float, float]:
        return 0.65 - 0.01 * float(point[KL] or 0), 0.38 + 0.002 * float(point[KL] or 0)

    _, line = sweep(over(0.3, 3.0), accuracies)
    assert "; ID test falls from 64.8 to 62.0, -2.80 pp [" in line
    assert line.endswith("; 0.3, the smallest, is selected by id/val/top1.")


def test_of_a_grid_the_other_fields_are_averaged() -> None:
    points: list[dict[str, Scalar]] = [
        {KL: weight, LR: lr} for weight, lr in product((0.1, 1.0), (1e-5, 1e-4, 1e-3))
    ]
    comparison, _ = sweep(points, lambda point: (0.6, 0.38 + 0.02 * (point[KL] == 1.0)))
    by_name = {effect.parameter: effect for effect in comparison.answer.effects}
    assert {name: effect.settings for name, effect in by_name.items()} == {KL: 3, LR: 2}
    assert by_name[KL].difference.mean == pytest.approx(0.02, abs=0.002)
    lines = [text for text in comparison.answer.lines if text.startswith("kl_weight 0.1 to 1: ")]
    assert "over 5 seeds, means over 3 settings of the other fields; " in lines[0]


def test_of_categories_the_best_is_compared_with_the_worst_at_a_stricter_level() -> None:
    heights = {"openai": 0.38, "icons": 0.40, "none": 0.37}
    points: list[dict[str, Scalar]] = [{WORDS: word} for word in heights]
    comparison, line = sweep(points, lambda point: (0.6, heights[str(point[WORDS])]))
    effect = only(comparison)
    assert [level.value for level in effect.levels] == ["none", "openai", "icons"]
    assert effect.interval == PairedTest(effect.difference.differences).interval(1 - ALPHA / 3)
    assert line.startswith(
        "contexts: OOD mean is highest with icons (40.0) and lowest with none (37.1), +2.97 pp ["
    )
    assert "] (interval of 98.33 %); " in line


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_few_seeds_claim_nothing(seeds: int) -> None:
    _, text = sweep(over(0.1, 1.0), lambda point: (0.6, 0.3 + 0.1 * float(point[KL] or 0)), seeds)
    assert text.startswith("kl_weight 0.1 to 1: OOD mean goes from ")
    assert f", over {seeds} seed{'' if seeds == 1 else 's'}; a claim needs 5 seeds; " in text
    assert ("[" in text) == (seeds >= 3)


def test_fields_that_never_vary_alone_have_no_effect() -> None:
    rng = np.random.default_rng(1)
    points: list[dict[str, Scalar]] = [
        {KL: float(weight), LR: float(rate), WORDS: word}
        for weight, rate in rng.uniform(0, 1, (6, 2))
        for word in [str(rng.choice(["openai", "icons"]))]
    ]
    comparison, _ = sweep(points, lambda point: (0.6, 0.3 + 0.001 * float(point[KL] or 0)))
    assert comparison.answer.effects == ()
    (sentence,) = (t for t in comparison.statistics if t.startswith("No effect of "))
    assert all(name in sentence.partition(":")[0] for name in ("contexts", "kl_weight", "lr"))


def test_settings_are_compared_on_common_seeds_and_one_that_lacks_any_is_left_out() -> None:
    for counts in ((6, 5), (5, 6)):
        longer = []
        for trial, (weight, seeds) in enumerate(zip((1.0, 3.0), counts, strict=True)):
            oods = [0.3 + weight / 10 + seed**2 / 100 for seed in range(seeds)]
            longer += arm("car_ft", [0.6] * seeds, oods, trial=trial, params={KL: weight})
        effect = only(compare(longer, ComparisonSpec(seeds=tuple(range(5))), sweep="s"))
        assert [level.endpoint for level in effect.levels] == pytest.approx([0.46, 0.66])
    runs: list[RunRecord] = []
    for trial, weight in enumerate((0.1, 1.0, 3.0)):
        for seed, wobble in enumerate(WOBBLE):
            measured = None if (weight, seed) == (3.0, 2) else metrics(0.6 + wobble, 0.4 + wobble)
            runs.append(run("car_ft", seed, measured, trial=trial, params={KL: weight}))
    assert [level.value for level in only(compare(runs, sweep="s")).levels] == [0.1, 1.0]
