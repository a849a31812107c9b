"""A verdict says "better" only where seeds, shifts, ID accuracy and the WiSE-FT curve allow it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.power import Power
from carft_sweep.tracking.comparison.runs import RunRecord, group
from carft_sweep.tracking.comparison.spec import Endpoint, SelectionRule
from carft_sweep.tracking.comparison.verdict import zero_shot_of
from carft_sweep.tracking.report.formats import to_json
from tests.tracking.five_seeds import FINE_TUNE, HIGH, LOW, NEAR, STEADY, compared
from tests.tracking.made_up import arm, kl_sweep, known, metrics, run, zero_shot


def rival(tests: Sequence[float], oods: Sequence[float]) -> list[RunRecord]:
    return arm("car_ft", tests, oods, trial=0)


def claim(comparison: Comparison, reference: str = "fine_tune") -> str:
    """The sentence on unmerged models."""
    texts = (*comparison.answer.lines, *comparison.statistics)
    return next(text for text in texts if f" against {reference}: " in text)


def details(comparison: Comparison) -> str:
    """What stands behind it."""
    begin = "car_ft against fine_tune: "
    return next(text for text in comparison.statistics if text.startswith(begin))


def apart(values: Sequence[float], *by: float) -> list[float]:
    """Each value with an amount of its own added."""
    return [value + own for value, own in zip(values, by, strict=True)]


SHAKY = apart(STEADY, 0.02, -0.02, 0.01, -0.02, 0.01)
SHAKY_UP = apart(STEADY, 0.02, -0.02, 0.03, -0.02, 0.01)
SLIGHT = [value - 0.004 for value in apart(LOW, 0, 1e-4, 0, -1e-4, 2e-4)]
"""A little lower, and surely so."""


def test_more_robust_at_equal_id_is_better_and_its_mirror_worse() -> None:
    comparison = compared([zero_shot()], FINE_TUNE, rival(NEAR, HIGH))
    (verdict,) = comparison.verdicts
    assert verdict.outcome == "better"
    assert claim(comparison).startswith("BETTER: car_ft against fine_tune: OOD mean +2.01 pp [")
    assert "], ID test +0.01 pp [" in claim(comparison)
    assert "] (on these test images; p " in claim(comparison)
    assert details(comparison).endswith(": ID is kept within 0.5 pp; over 5 seeds.")
    comparison = compared(arm("fine_tune", STEADY, HIGH), rival(NEAR, LOW))
    assert comparison.verdicts[0].outcome == "worse"
    assert claim(comparison).startswith("WORSE: car_ft against fine_tune: OOD mean -2.01 pp [")
    assert ": ID gains less than 0.5 pp; " in details(comparison)


@pytest.mark.parametrize(
    ("tests", "oods", "margin", "outcome", "reason"),
    [
        (
            [v - 0.02 for v in NEAR],
            HIGH,
            0.001,
            "trade_off",
            "OOD gains and ID loses more than 0.1 pp;",
        ),
        ([v - 0.0007 for v in NEAR], HIGH, 0.001, "trade_off", "OOD gains and ID loses;"),
        (SHAKY, HIGH, 0.005, "more_robust", "an ID loss above 0.5 pp is not excluded; "),
        (SHAKY, HIGH, 0.1, "better", "ID is kept within 10 pp"),
        ([v + 0.1 for v in NEAR], SLIGHT, 0.005, "trade_off", "OOD loses and ID gains; "),
        (SHAKY_UP, SLIGHT, 0.005, "less_robust", "an ID gain above 0.5 pp is not excluded; "),
    ],
    ids=["lost", "lost within the margin", "open", "wide margin", "gained", "gain is open"],
)
def test_what_id_does_and_whether_that_is_sure_decides_what_a_difference_in_ood_is_called(
    tests: list[float], oods: list[float], margin: float, outcome: str, reason: str
) -> None:
    comparison = compared(FINE_TUNE, rival(tests, oods), endpoint=Endpoint(id_margin=margin))
    (verdict,) = comparison.verdicts
    assert verdict.outcome == outcome
    assert f": {reason}" in details(comparison)
    interval = known(known(verdict.pair.id).ci95)
    assert tests is not SHAKY or interval.low < -0.005 < 0 < interval.high
    if outcome == "trade_off":
        number = "+2.01 pp [" if oods == HIGH else "-"
        beginning = f"TRADE-OFF: car_ft against fine_tune: OOD mean {number}"
        assert claim(comparison).startswith(beginning)
        assert (verdict.id_state == "lost") == (oods == HIGH)


def test_an_id_loss_that_holms_rule_alone_does_not_exclude_is_not_said_to_be_open() -> None:
    luck, small = (0.008, -0.008, 0.001, 0.004, -0.005), (-0.001, -0.0005, 0, 0.0005, 0.001)
    sides = (
        ("fine_tune", 0.65, 0.34, (0,) * 5),
        ("aa", 0.655, 0.3502, luck),
        ("bb", 0.6, 0.4, small),
    )
    comparison = compared(
        *(arm(name, apart([a] * 5, *own), apart([b] * 5, *own)) for name, a, b, own in sides)
    )
    (verdict,) = (v for v in comparison.verdicts if v.pair.candidate.algorithm == "aa")
    assert (verdict.outcome, verdict.id_state) == ("more_robust", "kept")
    sentence = "an ID loss above 0.5 pp is excluded by this interval, but not by Holm's rule over 2"
    assert sentence in comparison.verdict


def test_more_robust_without_a_measured_id_accuracy_is_not_better() -> None:
    both = []
    for record in [*FINE_TUNE, *rival(NEAR, HIGH)]:
        measured = {name: value for name, value in record.metrics.items() if name[:3] != "id/"}
        both.append(replace(record, metrics={**measured, "train/loss": 0.5}))
    comparison = compared(both, rule=SelectionRule(metric="train/loss", goal="minimize"))
    assert comparison.verdicts[0].outcome == "more_robust"
    assert ": ID is not tested: it was not measured; " in details(comparison)


def test_a_difference_within_the_noise_is_undecided_and_says_what_would_decide() -> None:
    comparison = compared(FINE_TUNE, rival(NEAR, [0.35, 0.33, 0.36, 0.335, 0.345]))
    assert comparison.verdicts[0].outcome == "no_difference"
    assert claim(comparison).startswith("UNDECIDED: car_ft against fine_tune: OOD mean +0.38 pp [")
    pattern = (
        r"an OOD gain of 0\.5 pp is not excluded; .*80 % of such sweeps find a difference of "
        r"(\S+) pp, with (\d+) seeds one of 0\.5 pp"
    )
    match = known(re.search(pattern, details(comparison)))
    power = known(Power.of(known(comparison.verdicts[0].pair.ood)))
    assert match[1] == f"{100 * power.smallest_difference(5):.2f}"
    assert int(match[2]) == power.seeds_for(0.005, 5)


@pytest.mark.parametrize(("margin", "state"), [(0.005, "NO GAIN"), (0.001, "UNDECIDED")])
def test_ood_has_a_margin_of_its_own(margin: float, state: str) -> None:
    close = rival(NEAR, apart(LOW, 1e-3, -1e-3, 2e-3, 0, 0))
    endpoint = Endpoint(id_margin=0.04, ood_margin=margin)
    assert compared(FINE_TUNE, close, endpoint=endpoint).verdicts[0].state == state


def test_arms_that_are_equal_in_each_seed_are_a_tie() -> None:
    comparison = compared(FINE_TUNE, rival(STEADY, LOW))
    (verdict,) = comparison.verdicts
    assert (verdict.outcome, verdict.p_different) == ("tie", None)
    equal = "the same OOD mean and ID test in every seed (on these test images)."
    assert claim(comparison) == f"NO GAIN: car_ft against fine_tune: {equal}"


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
    comparison = compared(FINE_TUNE, [*rival(NEAR, HIGH)[1:], run("car_ft", 0, trial=0)])
    assert comparison.verdicts[0].pair.seeds == (1, 2, 3, 4)
    assert "; 4 of 5 seeds have finished on both sides (" in claim(comparison)
    apart = compared(FINE_TUNE, [run("car_ft", 9, metrics(0.6, 0.4), trial=0)])
    assert claim(apart) == "UNDECIDED: car_ft against fine_tune: no finished seed in common."


@pytest.mark.parametrize(
    ("id_images", "images", "outcome", "message"),
    [
        (10_000, 100, "no_spread", "same to within one test image, which no test can judge"),
        (10_000, 10_000, "better", ": ID is kept within 0.5 pp"),
        (
            *(500, 10_000, "more_robust"),
            ": ID is not tested: its difference does not spread over seeds by more than one image;",
        ),
    ],
)
def test_a_spread_of_no_more_than_one_image_is_not_tested(
    id_images: int, images: int, outcome: str, message: str
) -> None:
    highs = apart(LOW, 0.0201, 0.0202, 0.0200, 0.0201, 0.0202)
    shifts = dict.fromkeys(("ood/outline", "ood/flat_emoji", "ood/pixel"), images)
    facts = {"images": {"id/test": id_images, **shifts}}
    both = [replace(record, facts=facts) for record in [*FINE_TUNE, *rival(NEAR, highs)]]
    comparison = compared(both)
    assert comparison.verdicts[0].outcome == outcome
    assert message in claim(comparison) + details(comparison)
    assert ("which no test can judge" in claim(comparison)) == (outcome == "no_spread")


def test_a_choice_among_settings_on_the_same_seeds_is_said_in_the_first_sentence() -> None:
    field = "algorithm.kl_weight"
    weaker = [arm("car_ft", STEADY, LOW, trial=t, params={field: t}) for t in (1, 2)]
    best = arm("car_ft", [v + 1e-3 for v in NEAR], HIGH, trial=3, params={field: 3})
    again = [*FINE_TUNE, *best]
    fresh = [replace(run, seed=known(run.seed) + 5, role="confirmation") for run in again]
    same = compared(FINE_TUNE, *weaker, best)
    confirmed = compared(FINE_TUNE, *weaker, best, fresh, confirm_seeds=(5, 6, 7, 8, 9))
    assert claim(same).endswith("; chosen among 3 settings on these seeds).")
    assert "chosen among" not in claim(confirmed)
    assert "over 5 fresh seeds" in confirmed.verdict
    for comparison, tried, is_confirmed in ((same, 3, False), (confirmed, 1, True)):
        (tests,) = to_json(comparison)["tests"]
        assert (tests["settings_tried"], tests["confirmed"]) == (tried, is_confirmed)


@pytest.mark.parametrize("rivals", [1, 3])
def test_the_printed_interval_is_the_one_that_decided(rivals: int) -> None:
    groups = [rival(NEAR, HIGH), *(arm(f"other_{i}", NEAR, LOW, trial=i) for i in range(1, rivals))]
    for verdict in compared(FINE_TUNE, *groups).verdicts:
        ood, own = (verdict.interval(name) for name in ("ood/mean/top1", "id/test/top1"))
        shown = ood is not None and own is not None and ood.low > 0 and own.low > -0.005
        assert shown == (verdict.outcome == "better")


def test_several_algorithms_are_adjusted_by_holm() -> None:
    slight = apart(LOW, 0.002, 0.004, 0.001, 0.004, 0.005)
    comparison = compared(FINE_TUNE, rival(NEAR, HIGH), arm("flyp", NEAR[::-1], slight, trial=1))
    strong, weak = comparison.verdicts
    assert strong.p_different == pytest.approx(2 * known(known(strong.pair.ood).p))
    assert weak.p_different == known(known(weak.pair.ood).p)
    assert "by Holm's rule over 2, intervals of 97.5 %" in comparison.verdict


def test_without_a_rival_a_reference_or_a_finished_trial_there_is_no_verdict() -> None:
    comparison = compared([zero_shot()], rival(NEAR, HIGH))
    assert comparison.verdicts == ()
    assert comparison.answer.lines[0] == (
        "UNDECIDED: there is no finished fine_tune run to compare car_ft with; --reference names "
        "another algorithm."
    )
    alone = compared([zero_shot()], arm("fine_tune", STEADY, LOW, trial=0)).answer.lines
    assert "UNDECIDED: fine_tune is the only algorithm here, at fine_tune." in alone
    failed = [run("car_ft", seed, trial=0) for seed in range(5)]
    nothing = "UNDECIDED: no trial has ended with a value to select on."
    assert compared(failed).verdict == compared([]).verdict == nothing
    comparison = compared(FINE_TUNE, failed, arm("flyp", NEAR, HIGH))
    assert comparison.selected is None
    assert comparison.answer.lines[0] == nothing
    assert comparison.answer.lines[1].startswith("BETTER: flyp against fine_tune: ")


def without_shifts(tests: Sequence[float]) -> list[RunRecord]:
    return [run("car_ft", s, metrics(test, None), trial=0) for s, test in enumerate(tests)]


PLAIN = [run("fine_tune", s, metrics(test, None)) for s, test in enumerate(STEADY)]


@pytest.mark.parametrize(
    ("more", "outcome", "message"),
    [
        (0.02, "better", "BETTER: car_ft against fine_tune: ID test +2.0"),
        (-0.02, "worse", "WORSE: car_ft against fine_tune: ID test -1.9"),
        (0.0002, "no_difference", "NO GAIN: car_ft against fine_tune: ID test +0.0"),
        (0.0, "tie", "NO GAIN: car_ft against fine_tune: the same ID test in every seed ("),
    ],
)
def test_without_shifts_id_alone_is_judged(more: float, outcome: str, message: str) -> None:
    noise = [0.0005, -0.0004, 0.0002, 0.0004, -0.0002] if more else [0.0] * 5
    ours = without_shifts([more + value for value in apart(STEADY, *noise)])
    comparison = compared(PLAIN, ours)
    (verdict,) = comparison.verdicts
    assert (verdict.outcome, verdict.pair.endpoint.metric) == (outcome, "id/test/top1")
    assert claim(comparison).startswith(message)
    assert comparison.statistics[0] == "No shift was measured, so nothing is said of robustness."
    assert "OOD" not in comparison.verdict
    assert "; 4 seeds, and a claim needs 5 (" in claim(compared(PLAIN[:4], ours[:4]))


def test_a_run_without_the_shifts_of_the_others_has_no_verdict_on_robustness() -> None:
    comparison = compared(FINE_TUNE, without_shifts(STEADY))
    assert comparison.verdicts[0].outcome == "no_shifts"
    assert claim(comparison).startswith("UNDECIDED: car_ft against fine_tune: ID test +0.00 pp; no")
    four_seeds = compared(FINE_TUNE[:4], without_shifts(STEADY[:4]))
    assert "; 4 seeds, and a claim needs 5." in claim(four_seeds)


def test_without_an_id_test_validation_stands_for_id_and_is_called_so() -> None:
    """As in DomainBed, where every domain that is not held out trains."""

    def without_test(measured: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in measured.items() if "id/test" not in name}

    usual, records = compared(kl_sweep()), []
    for record in kl_sweep():
        merges = {name: without_test(own) for name, own in record.merges.items()}
        records.append(replace(record, metrics=without_test(record.metrics), merges=merges))
    other = compared(records)
    assert other.endpoint.id_metric == "id/val/top1"
    assert [f.outcome for f in other.verdicts] == [f.outcome for f in usual.verdicts]
    # The made-up validation accuracy is that of the test.
    assert other.verdict == usual.verdict.replace("ID test", "ID val")
    assert [curve.points for curve in other.curves] == [curve.points for curve in usual.curves]
    (by_val,), (by_test,) = to_json(other)["tests"], to_json(usual)["tests"]
    assert by_val["id/val/top1"] == by_test["id/test/top1"]
    assert not any("id/test" in warning for warning in other.warnings)


def test_the_zero_shot_row_under_the_same_prompts_is_the_one() -> None:
    prompts = "prompts.classes"
    starts = group(zero_shot(digest=p, params={prompts: p}) for p in ("a", "b"))
    (own,) = group([run("car_ft", 0, metrics(0.6, 0.4), trial=0, params={prompts: "b"})])
    assert zero_shot_of(own, starts) == starts[1]


deltas = st.lists(st.floats(-0.05, 0.05), min_size=5, max_size=5)


@given(deltas, deltas)
def test_no_data_make_two_better_than_each_other(ood: list[float], identity: list[float]) -> None:
    oods, tests = apart(LOW, *ood), apart(STEADY, *identity)
    forward = compared(FINE_TUNE, rival(tests, oods)).verdicts[0].outcome
    backward = compared(arm("fine_tune", tests, oods), rival(STEADY, LOW)).verdicts[0].outcome
    opposite = {"better": "worse", "more_robust": "less_robust"}
    opposite |= {after: before for before, after in opposite.items()}
    assert opposite.get(forward, forward) == backward
