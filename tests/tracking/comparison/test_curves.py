"""A method with WiSE-FT against the reference with WiSE-FT, as whole curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.curves import CurveVerdict
from carft_sweep.tracking.comparison.hits import Hits
from carft_sweep.tracking.comparison.metrics import ID, OOD
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, Endpoint
from tests.scalar_curves import Curve, above, height_at, most_at
from tests.tracking.drawn_images import Images, drawings, hits_of, top1
from tests.tracking.made_up import KL, arm, known, metrics, run, zero_shot

ALPHAS = (0.25, 0.5, 0.75, 1)
LABELS = ("wise_ft@0.25", "wise_ft@0.5", "wise_ft@0.75", None)
Seeds = Sequence[float]
LUCK = (0.0, 0.0021, -0.0013, 0.0008, -0.0011)
"""What each of five seeds adds to OOD."""
LINE = ((0.58, 0.40), (0.60, 0.42), (0.62, 0.44), (0.64, 0.46))
"""Straight, so that its bound is its chord; without a zero-shot model it begins at alpha 0.25."""
ARCH = ((0.58, 0.40), (0.60, 0.43), (0.62, 0.45), (0.64, 0.455))


def tuned(algorithm: str, curves: Sequence[Curve], **changes: Any) -> list[RunRecord]:
    """A run for each seed with the models of its curve."""
    runs = []
    for seed, curve in enumerate(curves):
        *merged, (test, ood) = curve
        named = zip(LABELS, merged, strict=False)
        merges = {label: metrics(*point) for label, point in named}
        runs.append(run(algorithm, seed, metrics(test, ood), merges=merges, **changes))
    return runs


def car_ft(curves: Sequence[Curve], **changes: Any) -> list[RunRecord]:
    return tuned("car_ft", curves, trial=0, params={KL: 1.0}, **changes)


def moved(curve: Curve, *, ood: float = 0.0, at: float = 0.0) -> Curve:
    return tuple((test + at, height + ood) for test, height in curve)


def raised(curve: Curve, by: float, luck: Seeds = LUCK) -> list[Curve]:
    """The curve of each seed."""
    return [moved(curve, ood=by + own) for own in luck]


def same(curve: Curve, seeds: int = 5) -> list[RunRecord]:
    return tuned("fine_tune", [curve] * seeds)


def judged(*groups: Sequence[RunRecord], **changes: Any) -> CurveVerdict:
    (verdict,) = compared(*groups, **changes).curve_verdicts
    return verdict


def compared(
    *groups: Sequence[RunRecord], spec: ComparisonSpec | None = None, **changes: Any
) -> Comparison:
    return compare([run for runs in groups for run in runs], spec or ComparisonSpec(), **changes)


def test_a_curve_one_point_above_a_straight_one_gains_one_point() -> None:
    verdict = judged(car_ft(raised(LINE, 0.01)), same(LINE))
    pair, gains = verdict.pair, 0.01 + np.array(LUCK)
    assert known(pair.gain).differences == pytest.approx(gains)
    assert known(pair.loss).differences == pytest.approx(-gains)
    assert pair.common_range == pytest.approx((0.58, 0.64))
    student = stats.ttest_1samp(gains, 0)
    assert verdict.interval == pytest.approx(tuple(student.confidence_interval(0.95)))
    assert (verdict.state, verdict.p_worse) == ("BETTER CURVE", 1)


def test_of_bent_curves_the_bound_gains_less_than_they_are_higher() -> None:
    pair = judged(car_ft(raised(ARCH, 0.01)), same(ARCH)).pair
    of_itself = known(above(ARCH, ARCH, most_at))
    assert of_itself < 0
    assert known(pair.gain).mean == pytest.approx(0.01 + np.mean(LUCK) + of_itself)
    assert pair.slack == pytest.approx(-of_itself), "a true gain of so much is not seen"


@pytest.mark.parametrize(
    ("gain", "rival", "states", "levels"),
    [
        (-0.01, raised(LINE, 0.0002, LUCK[::-1]), ("WORSE CURVE", "NO GAIN"), (0.975, 0.975)),
        (-0.01, raised(LINE, -0.02), ("WORSE CURVE", "WORSE CURVE"), (0.95, 0.975)),
        (0.01, raised(LINE, 0.001), ("BETTER CURVE", "NO GAIN"), (0.975, 0.95)),
    ],
    ids=["loss", "two losses", "gain"],
)
def test_the_interval_is_at_the_level_that_holms_rule_leaves_to_the_loss_or_the_gain(
    gain: float, rival: list[Curve], states: tuple[str, str], levels: tuple[float, float]
) -> None:
    verdicts = compared(car_ft(raised(LINE, gain)), tuned("flyp", rival), same(LINE)).curve_verdicts
    assert tuple(verdict.state for verdict in verdicts) == states
    assert tuple(verdict.level for verdict in verdicts) == pytest.approx(levels)
    assert (known(verdicts[0].interval).high < 0) == (gain < 0)


@pytest.mark.parametrize(("spread", "state"), [(0.2, "NO GAIN"), (10, "UNDECIDED")])
def test_no_gain_is_said_if_the_loss_excludes_one_of_the_margin(spread: float, state: str) -> None:
    groups = car_ft(raised(LINE, 0.0, [spread * own for own in LUCK])), same(LINE)
    verdict = judged(*groups)
    assert (verdict.outcome, verdict.state) == ("no_difference", state)
    assert (known(verdict.interval).high < 0.005) == (state == "NO GAIN")
    wide = ComparisonSpec(endpoint=Endpoint(ood_margin=0.1))
    assert judged(*groups, spec=wide).state == "NO GAIN"


def test_the_estimate_is_what_the_drawn_curves_differ_by_also_where_alphas_are_few() -> None:
    """The middles of these curves' bounds differ by +1.05 points."""
    low, high = ((0.59, 0.43), (0.64, 0.445)), ((0.60, 0.44), (0.64, 0.46))
    ours = [moved(((0.58, 0.40), *low), ood=own) for own in LUCK]
    theirs = [moved(((0.58, 0.40), *high), ood=own) for own in LUCK[::-1]]
    verdict = judged(car_ft(ours), tuned("fine_tune", theirs))
    drawn = [known(above(one, two, height_at)) for one, two in zip(ours, theirs, strict=True)]
    assert verdict.pair.difference == pytest.approx(np.mean(drawn))
    assert np.mean(drawn) == pytest.approx(-0.0062, abs=1e-4)
    assert known(verdict.interval).low < np.mean(drawn) < known(verdict.interval).high


@pytest.mark.parametrize("curve", [LINE, ARCH, ARCH[1:]], ids=["line", "arch", "few alphas"])
def test_equal_curves_differ_by_zero_and_have_the_interval_of_both_tests(curve: Curve) -> None:
    twins = [moved(curve, ood=own) for own in LUCK], [moved(curve, ood=own) for own in LUCK[::-1]]
    verdict = judged(car_ft(twins[0]), tuned("fine_tune", twins[1]))
    assert verdict.pair.difference == pytest.approx(0)
    least = known(known(verdict.pair.gain).interval(verdict.gain_level))
    lost = known(known(verdict.pair.loss).interval(verdict.loss_level))
    assert verdict.interval == pytest.approx((least.low, -lost.low))


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [
        (car_ft([moved(LINE, at=0.1, ood=own) for own in LUCK]), same(LINE), None),
        (car_ft([moved(LINE, at=0.06, ood=own) for own in LUCK]), same(LINE), (0.64, 0.64)),
        (car_ft(raised(LINE, 0.01)), same((LINE[0], LINE[-1])), (0.58, 0.64)),
        (arm("car_ft", [0.7] * 5, [0.5] * 5, trial=0), same(LINE), None),
    ],
    ids=["apart", "one point in common", "a reference that nothing bounds", "a point outside"],
)
def test_curves_that_share_no_range_with_bounds_are_not_compared(
    ours: list[RunRecord], theirs: list[RunRecord], common: tuple[float, float] | None
) -> None:
    verdict = judged(ours, theirs)
    assert (verdict.outcome, verdict.state) == ("no_range", "UNDECIDED")
    assert (verdict.pair.gain, verdict.pair.loss) == (None, None)
    assert verdict.pair.common_range == (None if common is None else pytest.approx(common))


def test_a_method_without_merges_is_compared_as_the_point_that_it_is() -> None:
    points = arm("car_ft", [0.61] * 5, [0.43 + 0.01 + own for own in LUCK], trial=0)
    verdict = judged(points, same(LINE))
    assert verdict.pair.is_point
    assert known(verdict.pair.gain).differences == pytest.approx(0.01 + np.array(LUCK))
    assert verdict.pair.common_range == pytest.approx((0.61, 0.61))
    assert verdict.outcome == "better_curve"


def test_a_missing_seed_on_either_side_is_incomplete_and_settings_are_counted() -> None:
    whole, failed = raised(LINE, 0.01), [run("car_ft", 4, trial=0, params={KL: 1.0})]
    for groups in (
        (car_ft(whole[:4]), failed, same(LINE)),
        (car_ft(whole), same(LINE, 4), [run("fine_tune", 4)]),
    ):
        verdict = judged(*groups)
        assert verdict.outcome == "incomplete"
        assert (verdict.pair.seeds, verdict.seeds) == ((0, 1, 2, 3), (0, 1, 2, 3, 4))
    curves = raised(LINE, 0.01)
    settings = [tuned("car_ft", curves, trial=n, params={KL: float(n)}) for n in range(3)]
    assert judged(*settings, same(LINE)).tried == 3


def test_gains_that_spread_by_no_more_than_one_image_are_not_tested() -> None:
    facts = {"images": {"id/test": 100, "ood/outline": 100, "ood/pixel": 100}}
    theirs = tuned("fine_tune", [LINE] * 5, facts=facts)
    verdict = judged(car_ft(raised(LINE, 0.01), facts=facts), theirs)
    assert (verdict.outcome, verdict.p_better, verdict.interval) == ("no_spread", None, None)


def test_exchanging_the_sides_exchanges_gain_and_loss() -> None:
    rng = np.random.default_rng(0)
    curves = [tuple(map(tuple, np.array(LINE) + rng.normal(0, 0.004, (4, 2)))) for _ in range(10)]
    groups = [zero_shot()], car_ft(curves[:5]), tuned("fine_tune", curves[5:])
    forward = judged(*groups).pair
    backward = judged(*groups, spec=ComparisonSpec(reference="car_ft")).pair
    for own, mirrored in ((forward.gain, backward.loss), (forward.loss, backward.gain)):
        assert known(own).differences == known(mirrored).differences
    assert forward.common_range == backward.common_range


World = Mapping[tuple[str, int | None, str | None], Images]
"""Which images each model of an algorithm and seed has right."""


def made(seed: int, seeds: int = 5, count: int = 40) -> World:
    """Models that are right on the easiest images, but for some of each model's own."""
    first = drawings(seed, count)
    rng = np.random.default_rng(seed)
    of_unit = dict(zip(first.unit.unique(), rng.random(first.unit.nunique()), strict=True))
    hardness = 0.8 * first.unit.map(of_unit).to_numpy() + 0.2 * rng.random(len(first))

    def model(alpha: float, gain: float = 0.0) -> Images:
        """ID rises with alpha; OOD rises and falls again."""
        of_id, of_ood = 0.35 + 0.4 * alpha, 0.4 + 0.3 * alpha * (1.4 - alpha)
        share = gain * alpha + np.where(first.split == "id/test", of_id, of_ood)
        noise = rng.normal(0, 0.03, len(first))
        return first.assign(right=(hardness + noise < share).astype(float))

    world: dict[tuple[str, int | None, str | None], Images] = {("zero_shot", None, None): model(0)}
    for name, gain in (("car_ft", 0.06), ("fine_tune", 0.0)):
        for own in range(seeds):
            for alpha, label in zip(ALPHAS, LABELS, strict=True):
                world[name, own, label] = model(alpha, gain)
    return world


def runs_of(world: World) -> list[RunRecord]:
    runs = []
    measured = {key: metrics(top1(by, ID), top1(by, OOD)) for key, by in world.items()}
    for name, seed in {key[:2]: None for key in world}:
        own = {label: measured.get((name, seed, label), {}) for label in LABELS}
        merges = {label: values for label, values in own.items() if label is not None and values}
        trial = 0 if name == "car_ft" else None
        runs.append(run(name, seed, own[None], merges=merges, trial=trial))
    return runs


def reader(world: World) -> Callable[[RunRecord, str | None], Hits | None]:
    def read(record: RunRecord, merge: str | None) -> Hits | None:
        by = world.get((record.algorithm, record.seed, merge))
        return None if by is None else hits_of(by)

    return read


@pytest.mark.parametrize(
    "lacking",
    [None, ("zero_shot", None, None), ("fine_tune", 2, "wise_ft@0.5"), ("car_ft", 0, None)],
    ids=str,
)
def test_the_claim_is_tested_with_both_errors_but_where_a_model_keeps_no_predictions(
    lacking: tuple[str, int | None, str | None] | None,
) -> None:
    world = made(3)
    alone = known(judged(runs_of(world)).pair.gain)
    readable = {key: by for key, by in world.items() if key != lacking}
    both = known(judged(runs_of(world), hits=reader(readable)).pair.gain)
    assert alone.images is None
    assert (both.images is None) == (lacking is not None)
    variance = 0.0 if both.images is None else both.images.variance
    assert both.error.size**2 == pytest.approx(alone.error.size**2 + variance)


@given(st.floats(-0.03, 0.03), st.floats(0.2, 3.0), st.permutations(range(5)))
def test_the_claim_is_students_in_any_order(by: float, spread: float, order: list[int]) -> None:
    luck = [spread * LUCK[place] for place in order]
    verdict = judged(car_ft(raised(LINE, by, luck)), same(LINE))
    gains = by + np.array(luck)
    one_sided = stats.ttest_1samp(gains, 0, alternative="greater").pvalue
    assert verdict.p_better == pytest.approx(min(1, 2 * one_sided), rel=1e-6)
    assert verdict.p_worse == pytest.approx(min(1, 2 * (1 - one_sided)), rel=1e-6, abs=1e-12)
    assert (verdict.outcome == "better_curve") == (2 * one_sided < 0.05)
    assert (known(verdict.interval).low > 0) == (verdict.outcome == "better_curve")
