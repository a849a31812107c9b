"""A verdict says "better" only where seeds, shifts, ID accuracy and the WiSE-FT curve allow it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.power import Power
from carft_sweep.tracking.comparison.runs import RunRecord, group
from carft_sweep.tracking.comparison.spec import ComparisonSpec, Endpoint, SelectionRule
from carft_sweep.tracking.comparison.verdict import zero_shot_of
from carft_sweep.tracking.report.formats import to_json
from tests.tracking.made_up import arm, kl_sweep, metrics, run, zero_shot

STEADY = [0.65, 0.652, 0.648, 0.651, 0.649]
NEAR = [0.6505, 0.6516, 0.6484, 0.6508, 0.6492]
"""The same but for the luck of seeds: without it nothing is tested."""
LOW = [0.340, 0.343, 0.338, 0.341, 0.339]
HIGH = [0.361, 0.362, 0.358, 0.360, 0.3605]


def rival(tests: Sequence[float], oods: Sequence[float]) -> list[RunRecord]:
    return arm("car_ft", tests, oods, trial=0)


def compared(*groups: Sequence[RunRecord], **options: object) -> Comparison:
    spec = ComparisonSpec.model_validate(options)
    return compare([run for runs in groups for run in runs], spec, sweep="s")


def claim(comparison: Comparison, reference: str = "fine_tune") -> str:
    """The sentence on unmerged models."""
    texts = (*comparison.answer.lines, *comparison.statistics)
    return next(text for text in texts if f" against {reference}: " in text)


def details(comparison: Comparison) -> str:
    """What stands behind it."""
    sides = "car_ft against fine_tune: "
    return next(text for text in comparison.statistics if text.startswith(sides))


FINE_TUNE = arm("fine_tune", STEADY, LOW)


def test_more_robust_at_equal_id_is_better() -> None:
    comparison = compared([zero_shot()], FINE_TUNE, rival(NEAR, HIGH))
    (verdict,) = comparison.verdicts
    assert verdict.outcome == "better"
    assert claim(comparison).startswith("BETTER: car_ft against fine_tune: OOD mean +2.01 pp [")
    assert "], ID test +0.01 pp [" in claim(comparison)
    assert "] (on these test images; p " in claim(comparison)
    assert details(comparison).endswith(": ID is kept within 0.5 pp; over 5 seeds.")


@pytest.mark.parametrize(("lost", "said"), [(0.02, "loses more than 0.1 pp"), (0.0007, "loses")])
def test_more_robust_where_id_is_lost_is_a_trade_off(lost: float, said: str) -> None:
    comparison = compared(
        FINE_TUNE, rival([value - lost for value in NEAR], HIGH), endpoint=Endpoint(id_margin=0.001)
    )
    verdict = comparison.verdicts[0]
    assert (verdict.outcome, verdict.id_state) == ("trade_off", "lost")
    assert claim(comparison).startswith("TRADE-OFF: car_ft against fine_tune: OOD mean +2.01 pp [")
    assert f": OOD gains and ID {said};" in details(comparison)


def test_an_uncertain_id_difference_is_not_shown_to_be_within_the_margin() -> None:
    shaky = [value + d for value, d in zip(STEADY, [0.02, -0.02, 0.01, -0.02, 0.01], strict=True)]
    comparison = compared(FINE_TUNE, rival(shaky, HIGH))
    id_test = comparison.verdicts[0].pair.id
    assert id_test is not None
    assert id_test.ci95 is not None
    assert id_test.ci95.low < -0.005 < 0 < id_test.ci95.high
    assert comparison.verdicts[0].outcome == "more_robust"
    assert ": an ID loss above 0.5 pp is not excluded; " in details(comparison)
    generous = compared(FINE_TUNE, rival(shaky, HIGH), endpoint=Endpoint(id_margin=0.1))
    assert generous.verdicts[0].outcome == "better"


def test_an_id_loss_that_holms_rule_alone_does_not_exclude_is_not_said_to_be_open() -> None:
    luck, small = (0.008, -0.008, 0.001, 0.004, -0.005), (-0.001, -0.0005, 0, 0.0005, 0.001)
    sides = [
        ("fine_tune", 0.65, 0.34, [0.0] * 5),
        ("aa", 0.655, 0.3502, luck),
        ("bb", 0.6, 0.4, small),
    ]
    comparison = compared(
        *(
            arm(name, [test + d for d in own], [ood + d for d in own])
            for name, test, ood, own in sides
        )
    )
    verdict = next(it for it in comparison.verdicts if it.pair.candidate.algorithm == "aa")
    assert (verdict.outcome, verdict.id_state) == ("more_robust", "kept")
    sentence = "an ID loss above 0.5 pp is excluded by this interval, but not by Holm's rule over 2"
    assert sentence in comparison.verdict


def test_more_robust_without_a_measured_id_accuracy_is_not_better() -> None:
    both = [
        replace(
            run,
            metrics={name: value for name, value in run.metrics.items() if name[:3] != "id/"}
            | {"train/loss": 0.5},
        )
        for run in [*FINE_TUNE, *rival(NEAR, HIGH)]
    ]
    comparison = compared(both, rule=SelectionRule(metric="train/loss", goal="minimize"))
    assert comparison.verdicts[0].outcome == "more_robust"
    assert ": ID is not tested: it was not measured; " in details(comparison)


def test_the_mirror_of_better_is_worse() -> None:
    comparison = compared(arm("fine_tune", STEADY, HIGH), rival(NEAR, LOW))
    assert comparison.verdicts[0].outcome == "worse"
    assert claim(comparison).startswith("WORSE: car_ft against fine_tune: OOD mean -2.01 pp [")
    assert ": ID gains less than 0.5 pp; " in details(comparison)


def test_less_robust_for_an_id_that_is_gained_is_a_trade_off_too() -> None:
    gained = [value + 0.1 for value in NEAR]
    slight = [value - 0.004 + d for value, d in zip(LOW, [0, 1e-4, 0, -1e-4, 2e-4], strict=True)]
    comparison = compared(FINE_TUNE, rival(gained, slight))
    assert comparison.verdicts[0].outcome == "trade_off"
    assert ": OOD loses and ID gains; " in details(comparison)
    shaky = [value + d for value, d in zip(STEADY, [0.02, -0.02, 0.03, -0.02, 0.01], strict=True)]
    comparison = compared(FINE_TUNE, rival(shaky, slight))
    assert comparison.verdicts[0].outcome == "less_robust"
    assert ": an ID gain above 0.5 pp is not excluded; " in details(comparison)


def test_a_difference_within_the_noise_is_undecided_and_says_what_would_decide() -> None:
    noisy = [0.35, 0.33, 0.36, 0.335, 0.345]
    comparison = compared(FINE_TUNE, rival(NEAR, noisy))
    assert comparison.verdicts[0].outcome == "no_difference"
    assert claim(comparison).startswith("UNDECIDED: car_ft against fine_tune: OOD mean +0.38 pp [")
    found = re.search(
        r"an OOD gain of 0\.5 pp is not excluded; .*80 % of such sweeps find a difference of "
        r"(\S+) pp, with (\d+) seeds one of 0\.5 pp",
        details(comparison),
    )
    assert found is not None
    test = comparison.verdicts[0].pair.ood
    assert test is not None
    power = Power.of(test)
    assert power is not None
    assert found[1] == f"{100 * power.smallest_difference(5):.2f}"
    assert int(found[2]) == power.seeds_for(0.005, 5)


def test_ood_has_a_margin_of_its_own() -> None:
    close = [value + d for value, d in zip(LOW, [1e-3, -1e-3, 2e-3, 0, 0], strict=True)]
    for margin, state in ((0.005, "NO GAIN"), (0.001, "UNDECIDED")):
        endpoint = Endpoint(id_margin=0.04, ood_margin=margin)
        verdict = compared(FINE_TUNE, rival(NEAR, close), endpoint=endpoint).verdicts[0]
        assert verdict.state == state


def test_arms_that_are_equal_in_each_seed_are_a_tie() -> None:
    comparison = compared(FINE_TUNE, rival(STEADY, LOW))
    verdict = comparison.verdicts[0]
    assert (verdict.outcome, verdict.p_different) == ("tie", None)
    assert claim(comparison) == (
        "NO GAIN: car_ft against fine_tune: the same OOD mean and ID test in every seed (on these "
        "test images)."
    )


@pytest.mark.parametrize("n", [1, 4])
def test_below_five_seeds_there_are_numbers_and_no_claim(n: int) -> None:
    comparison = compared(arm("fine_tune", STEADY[:n], LOW[:n]), rival(NEAR[:n], HIGH[:n]))
    seeds = f"{n} seed{'s' * (n > 1)}"
    assert claim(comparison).startswith("UNDECIDED: car_ft against fine_tune: OOD mean +")
    assert claim(comparison).endswith(f"; {seeds}, and a claim needs 5 (on these test images).")
    assert comparison.verdicts[0].outcome == "too_few_seeds"
    assert "p =" not in comparison.verdict
    assert ("[" in claim(comparison)) == (n >= 3)


def test_only_seeds_that_both_have_are_paired() -> None:
    partial = [*rival(NEAR, HIGH)[1:], run("car_ft", 0, trial=0)]
    comparison = compared(FINE_TUNE, partial)
    assert comparison.verdicts[0].pair.seeds == (1, 2, 3, 4)
    assert "; 4 of 5 seeds have finished on both sides (" in claim(comparison)
    apart = [run("car_ft", 9, metrics(0.6, 0.4), trial=0)]
    assert claim(compared(FINE_TUNE, apart)) == (
        "UNDECIDED: car_ft against fine_tune: no finished seed in common."
    )


def with_images(runs: Sequence[RunRecord], id_images: int, shift_images: int) -> list[RunRecord]:
    shifts = dict.fromkeys(("outline", "flat_emoji", "pixel"), shift_images)
    images = {"id/test": id_images, **{f"ood/{name}": n for name, n in shifts.items()}}
    return [replace(run, facts={"images": images}) for run in runs]


@pytest.mark.parametrize(("images", "outcome"), [(100, "no_spread"), (10_000, "better")])
def test_a_spread_of_no_more_than_one_image_is_not_tested(images: int, outcome: str) -> None:
    gains = [0.0201, 0.0202, 0.0200, 0.0201, 0.0202]
    highs = [low + gain for low, gain in zip(LOW, gains, strict=True)]
    both = with_images([*FINE_TUNE, *rival(NEAR, highs)], 10_000, images)
    comparison = compared(both)
    assert comparison.verdicts[0].outcome == outcome
    shown = "spread by no more than one image, so nothing is tested" in claim(comparison)
    assert shown == (outcome == "no_spread")


def test_id_that_does_not_spread_is_not_tested_either() -> None:
    both = with_images([*FINE_TUNE, *rival(NEAR, HIGH)], 500, 10_000)
    comparison = compared(both)
    assert comparison.verdicts[0].outcome == "more_robust"
    assert (
        ": ID is not tested: its difference does not spread over seeds by more than one image;"
        in details(comparison)
    )


def test_a_choice_among_settings_on_the_same_seeds_is_said_in_the_first_sentence() -> None:
    others = [
        arm("car_ft", STEADY, LOW, trial=t, params={"algorithm.kl_weight": t}) for t in (1, 2)
    ]
    best = arm("car_ft", [v + 1e-3 for v in NEAR], HIGH, trial=3, params={"algorithm.kl_weight": 3})
    comparison = compared(FINE_TUNE, *others, best)
    said = "; chosen among 3 settings on these seeds)."
    assert claim(comparison).endswith(said)
    (tests,) = to_json(comparison)["tests"]
    assert (tests["settings_tried"], tests["confirmed"]) == (3, False)
    fresh = [
        replace(it, seed=it.seed + 5 if it.seed is not None else None, role="confirmation")
        for it in [*FINE_TUNE, *best]
    ]
    confirmed = compared(FINE_TUNE, *others, best, fresh, confirm_seeds=(5, 6, 7, 8, 9))
    assert "chosen among" not in claim(confirmed)
    assert "over 5 fresh seeds" in confirmed.verdict
    (tests,) = to_json(confirmed)["tests"]
    assert (tests["settings_tried"], tests["confirmed"]) == (1, True)


@pytest.mark.parametrize("rivals", [1, 3])
def test_the_printed_interval_is_the_one_that_decided(rivals: int) -> None:
    groups = [rival(NEAR, HIGH), *(arm(f"other_{i}", NEAR, LOW, trial=i) for i in range(1, rivals))]
    for verdict in compared(FINE_TUNE, *groups).verdicts:
        ood, id_test = verdict.pair.ood, verdict.pair.id
        assert ood is not None
        assert id_test is not None
        intervals = [verdict.interval(name) for name in ("ood/mean/top1", "id/test/top1")]
        if intervals[0] is None or intervals[1] is None:
            assert verdict.outcome != "better"
        else:
            shown = intervals[0].low > 0 and intervals[1].low > -0.005
            assert shown == (verdict.outcome == "better")


def test_several_algorithms_are_adjusted_by_holm() -> None:
    slight = [value + d for value, d in zip(LOW, [0.002, 0.004, 0.001, 0.004, 0.005], strict=True)]
    groups = [FINE_TUNE, rival(NEAR, HIGH), arm("flyp", NEAR[::-1], slight, trial=1)]
    comparison = compared(*groups)
    strong, weak = comparison.verdicts
    assert strong.pair.ood is not None
    assert weak.pair.ood is not None
    assert strong.pair.ood.p is not None
    assert strong.p_different == pytest.approx(2 * strong.pair.ood.p)
    assert weak.p_different == weak.pair.ood.p
    assert "by Holm's rule over 2, intervals of 97.5 %" in comparison.verdict


def test_without_a_reference_there_is_no_verdict() -> None:
    comparison = compared([zero_shot()], rival(NEAR, HIGH))
    assert comparison.verdicts == ()
    assert comparison.answer.lines[0] == (
        "UNDECIDED: there is no finished fine_tune run to compare car_ft with; --reference names "
        "another algorithm."
    )


def test_a_sweep_of_the_reference_itself_has_nothing_to_compare_with() -> None:
    comparison = compared([zero_shot()], arm("fine_tune", STEADY, LOW, trial=0))
    assert "UNDECIDED: fine_tune is the only algorithm here, at fine_tune." in (
        comparison.answer.lines
    )


def without_shifts(tests: Sequence[float]) -> list[RunRecord]:
    return [run("car_ft", s, metrics(test, None), trial=0) for s, test in enumerate(tests)]


PLAIN = [run("fine_tune", s, metrics(test, None)) for s, test in enumerate(STEADY)]


@pytest.mark.parametrize(
    ("more", "outcome", "said"),
    [
        (0.02, "better", "BETTER: car_ft against fine_tune: ID test +2.0"),
        (-0.02, "worse", "WORSE: car_ft against fine_tune: ID test -1.9"),
        (0.0002, "no_difference", "NO GAIN: car_ft against fine_tune: ID test +0.0"),
        (0.0, "tie", "NO GAIN: car_ft against fine_tune: the same ID test in every seed ("),
    ],
)
def test_without_shifts_the_id_test_is_judged_and_robustness_is_not(
    more: float, outcome: str, said: str
) -> None:
    noise = [0.0005, -0.0004, 0.0002, 0.0004, -0.0002] if more else [0.0] * 5
    tests = [value + more + small for value, small in zip(STEADY, noise, strict=True)]
    comparison = compared(PLAIN, without_shifts(tests))
    (verdict,) = comparison.verdicts
    assert (verdict.outcome, verdict.pair.endpoint.metric) == (outcome, "id/test/top1")
    assert claim(comparison).startswith(said)
    assert comparison.statistics[0] == "No shift was measured, so nothing is said of robustness."
    assert "OOD" not in comparison.verdict
    few = compared(PLAIN[:4], without_shifts(tests[:4]))
    assert "; 4 seeds, and a claim needs 5 (" in claim(few)


def test_a_run_without_the_shifts_of_the_others_has_no_verdict_on_robustness() -> None:
    comparison = compared(FINE_TUNE, without_shifts(STEADY))
    assert comparison.verdicts[0].outcome == "no_shifts"
    assert claim(comparison).startswith("UNDECIDED: car_ft against fine_tune: ID test +0.00 pp; no")
    few = compared(FINE_TUNE[:4], without_shifts(STEADY[:4]))
    assert "; 4 seeds, and a claim needs 5." in claim(few)


def without_id_test(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """As in DomainBed, where every domain that is not held out trains."""

    def kept(measured: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in measured.items() if "id/test" not in name}

    merges = ({label: kept(measured) for label, measured in run.merges.items()} for run in runs)
    return [
        replace(run, metrics=kept(run.metrics), merges=merged)
        for run, merged in zip(runs, merges, strict=True)
    ]


def test_without_an_id_test_validation_stands_for_id_and_is_called_so() -> None:
    runs = kl_sweep()
    usual, other = compared(runs), compared(without_id_test(runs))
    assert other.endpoint.id_metric == "id/val/top1"
    assert [f.outcome for f in other.verdicts] == [f.outcome for f in usual.verdicts]
    # The made-up validation accuracy is that of the test.
    assert other.verdict == usual.verdict.replace("ID test", "ID val")
    assert [curve.points for curve in other.curves] == [curve.points for curve in usual.curves]
    (by_val,), (by_test,) = to_json(other)["tests"], to_json(usual)["tests"]
    assert by_val["id/val/top1"] == by_test["id/test/top1"]
    assert not any("id/test" in warning for warning in other.warnings)


def test_without_any_finished_trial_nothing_is_said_but_of_the_others() -> None:
    failed = [run("car_ft", seed, trial=0) for seed in range(5)]
    assert compared(failed).verdict == "UNDECIDED: no trial has ended with a value to select on."
    comparison = compared(FINE_TUNE, failed, arm("flyp", NEAR, HIGH))
    assert comparison.selected is None
    assert comparison.answer.lines[0] == "UNDECIDED: no trial has ended with a value to select on."
    assert comparison.answer.lines[1].startswith("BETTER: flyp against fine_tune: ")
    assert compared([]).verdict == "UNDECIDED: no trial has ended with a value to select on."


def test_the_zero_shot_row_under_the_same_prompts_is_the_one() -> None:
    prompts = "prompts.classes"
    starts = group(zero_shot(digest=p, params={prompts: p}) for p in ("a", "b"))
    (own,) = group([run("car_ft", 0, metrics(0.6, 0.4), trial=0, params={prompts: "b"})])
    assert zero_shot_of(own, starts) == starts[1]


deltas = st.lists(st.floats(-0.05, 0.05), min_size=5, max_size=5)


@given(deltas, deltas)
def test_no_data_makes_two_algorithms_better_than_each_other(
    ood: list[float], identity: list[float]
) -> None:
    oods = [value + d for value, d in zip(LOW, ood, strict=True)]
    tests = [value + d for value, d in zip(STEADY, identity, strict=True)]
    there = compared(FINE_TUNE, rival(tests, oods)).verdicts[0]
    back = compared(arm("fine_tune", tests, oods), rival(STEADY, LOW)).verdicts[0]
    opposite = {
        "better": "worse",
        "worse": "better",
        "more_robust": "less_robust",
        "less_robust": "more_robust",
    }
    assert opposite.get(there.outcome, there.outcome) == back.outcome
