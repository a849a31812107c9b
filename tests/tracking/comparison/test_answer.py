"""The answer says what to use and how sure that is, before all statistics."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.report.formats import to_json
from tests.tracking.made_up import arm, bent, kl_sweep, metrics, run, zero_shot

STEADY = [0.65, 0.652, 0.648, 0.651, 0.649]
NEAR = [0.6505, 0.6516, 0.6484, 0.6508, 0.6492]
LOW = [0.340, 0.343, 0.338, 0.341, 0.339]
HIGH = [0.361, 0.362, 0.358, 0.360, 0.3605]


def compared(*groups: Sequence[RunRecord], **options: object) -> Comparison:
    spec = ComparisonSpec.model_validate(options)
    return compare([run for runs in groups for run in runs], spec, sweep="s")


def usual() -> Comparison:
    return compared(
        [zero_shot()], arm("fine_tune", STEADY, LOW), arm("car_ft", NEAR, HIGH, trial=0)
    )


def test_the_answer_says_each_thing_once_with_its_interval() -> None:
    comparison = usual()
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
    few = compare(kl_sweep(3), sweep="s")
    for line in few.answer.lines[:2]:
        assert line.startswith("UNDECIDED: ")
        assert "3 seeds, and a claim needs 5" in line


def test_the_curve_comes_first() -> None:
    comparison = compare(kl_sweep(), sweep="s")
    curve = comparison.answer.curve
    assert curve is not None
    assert curve.pair.candidate.label == "car_ft kl_weight=1"
    assert comparison.answer.lines[0].startswith(
        "BETTER CURVE: car_ft kl_weight=1 beats fine_tune, both with WiSE-FT: OOD mean +"
    )
    assert len(comparison.answer.lines[0].split()) <= 33
    (document,) = to_json(comparison)["curves"]
    assert document["state"] == curve.state
    assert document["gain"]["mean"] == curve.pair.gain.mean if curve.pair.gain else None


def test_the_strongest_has_the_highest_ood_of_what_keeps_id() -> None:
    lower = [value - 0.006 for value in NEAR]
    robust = arm("flyp", lower, [value + 0.02 for value in HIGH], trial=1)
    comparison = compared([zero_shot()], arm("fine_tune", STEADY, LOW), robust)
    strongest = comparison.answer.strongest
    assert strongest is not None
    # Zero-shot and flyp have a higher OOD mean, and an ID test below the margin.
    assert strongest.arm.label == "fine_tune"
    assert (strongest.eligible, strongest.models) == (1, 3)
    assert comparison.answer.lines[1] == (
        "Highest OOD mean of the 1 of 3 models that keep the ID test of fine_tune within 0.5 pp: "
        "fine_tune (OOD mean 34.0, ID test 65.0), picked by test data, and not the selected one."
    )
    alone = compare([run("fine_tune", seed, metrics(0.65, 0.34)) for seed in range(5)], sweep="s")
    assert alone.answer.lines[-1].endswith("picked by test data.")
    within = arm("flyp", [value - 0.004 for value in NEAR], HIGH, trial=1)
    strongest = compared(arm("fine_tune", STEADY, LOW), within).answer.strongest
    assert strongest is not None
    assert strongest.arm.label == "flyp"


def test_a_merged_model_may_be_the_strongest_and_is_not_selected_for_it() -> None:
    merges = {"wise_ft@0.5": metrics(0.655, 0.40, val=0.66)}
    tuned = [
        run("fine_tune", seed, metrics(test, ood), merges=merges)
        for seed, (test, ood) in enumerate(zip(STEADY, LOW, strict=True))
    ]
    comparison = compared([zero_shot()], tuned, arm("car_ft", NEAR, HIGH, trial=0))
    strongest = comparison.answer.strongest
    assert strongest is not None
    assert strongest.arm.label == "fine_tune + wise_ft@0.5"
    assert (
        "fine_tune + wise_ft@0.5 (OOD mean 40.0, ID test 65.5), picked by test data, and not"
        in comparison.verdict
    )
    assert comparison.selected is not None
    assert comparison.selected.arm.label == "car_ft"
    assert [row.arm.label for row in comparison.rows if row.selected] == ["car_ft"]


def test_where_the_reference_is_selected_the_best_rival_is_compared_with_it() -> None:
    comparison = compared(
        arm("fine_tune", [value + 0.01 for value in STEADY], LOW, trial=0),
        arm("flyp", [value - 0.01 for value in NEAR], HIGH, trial=1),
        arm("car_ft", NEAR, HIGH, trial=2),
    )
    assert comparison.selected is not None
    assert comparison.selected.arm.label == "fine_tune"
    verdict = comparison.answer.verdict
    assert verdict is not None
    assert verdict.pair.candidate.label == "car_ft"


def test_without_shifts_the_strongest_is_so_in_distribution() -> None:
    def without(runs: Sequence[RunRecord]) -> list[RunRecord]:
        return [
            run(it.algorithm, it.seed, metrics(it.metrics["id/test/top1"], None)) for it in runs
        ]

    comparison = compared(
        without(arm("fine_tune", STEADY, LOW)),
        without(arm("car_ft", [value + 0.02 for value in NEAR], HIGH)),
    )
    assert comparison.answer.lines[-1].startswith(
        "Highest ID test of 2 models: car_ft (ID test 67.0), picked by test data; +2"
    )


def test_the_answer_on_fresh_seeds_is_of_these_alone() -> None:
    runs = kl_sweep()
    fresh = [
        run(name, seed, metrics(0.65 + d, ood + d), role="confirmation", params=params)
        for name, ood, params in (
            ("fine_tune", 0.34, {}),
            ("car_ft", 0.345, {"algorithm.kl_weight": 1.0}),
        )
        for seed, d in zip(range(5, 10), [0, 0.004, -0.003, 0.002, 0.001], strict=True)
    ]
    comparison = compared(runs, fresh, confirm_seeds=(5, 6, 7, 8, 9), seeds=(0, 1, 2, 3, 4))
    strongest = comparison.answer.strongest
    assert strongest is not None
    assert strongest.arm.confirms
    assert strongest.verdict is not None
    assert strongest.verdict.seeds == (5, 6, 7, 8, 9)
    assert (
        "car_ft kl_weight=1 (OOD mean 34.6, ID test 65.1), picked by test data, and also"
        in comparison.verdict
    )
    assert "on these seeds" not in " ".join(comparison.answer.lines)
    # The field's effect is of the whole sweep, on the seeds that all its settings have.
    (effect,) = comparison.answer.effects
    assert len(effect.levels) == 4


def test_every_number_of_a_line_is_in_the_json() -> None:
    comparison = compare(kl_sweep(), sweep="s")
    document = json.loads(json.dumps(to_json(comparison), allow_nan=False))
    answer = document["answer"]
    assert answer["lines"] == [*comparison.answer.lines]
    strongest = answer["strongest"]
    means = {row["label"]: row["metrics"]["ood/mean/top1"]["mean"] for row in document["rows"]}
    assert strongest["endpoint"]["mean"] == means[strongest["label"]]
    assert strongest["runner_up"]["endpoint"]["mean"] == means[strongest["runner_up"]["label"]]
    assert strongest["label"] != strongest["runner_up"]["label"]
    assert answer["candidate"] == "car_ft kl_weight=1"
    test = next(it for it in document["tests"] if it["candidate"] == answer["candidate"])
    (curve,) = document["curves"]
    unmerged = [test[it] for it in ("ood/mean/top1", "id/test/top1")]
    for line, numbers in (
        (comparison.answer.lines[0], [curve["difference"], *curve["interval"]]),
        (comparison.answer.lines[1], [n for it in unmerged for n in (it["mean"], *it["interval"])]),
    ):
        said = re.findall(r"[+-]\d+\.\d\d", line)
        assert said == [f"{100 * number:+.2f}" for number in numbers]


SWEEPS, CHECKED = 2_000, 100
"""Simulated, and of these judged by the product as well."""


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
    (curve,) = (curve for curve in comparison.curves if curve.label == "fine_tune")
    assert curve.points[-1].alpha == 1
    selected_by_it = compare(runs, ComparisonSpec(rule=SelectionRule(merge="wise_ft@1")), sweep="s")
    assert any(row.arm.merge == "wise_ft@1" and row.selected for row in selected_by_it.rows)


def test_rounding_neither_leaves_out_the_strongest_nor_makes_it() -> None:
    assert 0.035 - 0.005 > 0.03
    assert 0.1 + 0.2 > 0.3
    at_the_margin = arm("flyp", [0.03] * 5, [0.3] * 5, trial=1)
    later = arm("car_ft", [0.035] * 5, [0.1 + 0.2] * 5, trial=2)
    comparison = compared(arm("fine_tune", [0.035] * 5, LOW), at_the_margin, later)
    strongest = comparison.answer.strongest
    assert strongest is not None
    assert (strongest.eligible, strongest.models) == (3, 3)
    assert strongest.arm.label == "fine_tune"
    runs = [*arm("fine_tune", [0.035] * 5, [0.2] * 5), *at_the_margin, *later]
    strongest = compared(runs).answer.strongest
    assert strongest is not None
    assert strongest.arm.algorithm == "flyp"
