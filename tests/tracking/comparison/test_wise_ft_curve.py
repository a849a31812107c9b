"""The WiSE-FT curve is read at equal ID accuracy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from carft_sweep.tracking.comparison import wise_ft_curve as wise_ft
from carft_sweep.tracking.comparison.runs import RunRecord, group
from carft_sweep.tracking.comparison.wise_ft_curve import Curve, Point, curve_gain, curve_sag
from tests.scalar_curves import above, height_at, least_at, most_at
from tests.tracking.made_up import bent, known, metrics, run, zero_shot

Numbers = NDArray[np.float64]
Points = Sequence[tuple[float, float]]
"""ID and OOD accuracy by rising alpha."""
ARCH = ((0.5, 0.3), (0.6, 0.4), (0.7, 0.36), (0.65, 0.2))
"""It turns back behind its third point."""


def axes(*curves: Points) -> tuple[Numbers, Numbers]:
    """IDs and OODs [curves, points]."""
    points = np.array(curves, dtype=np.float64)
    return points[..., 0], points[..., 1]


def bound(curve: Points, place: float) -> float | None:
    (most,) = wise_ft.ood_bound(*axes(curve), np.array([[place]]))[0]
    return None if math.isnan(most) else float(most)


def height(curve: Points, place: float) -> float | None:
    (highest,) = wise_ft.highest_on_chords(*axes(curve), np.array([[place]]))[0]
    return None if math.isnan(highest) else float(highest)


def gain(ours: Points, theirs: Points) -> float:
    """Of one curve above the bound of another."""
    return float(curve_gain(*axes(ours), *axes(theirs))[0])


def curve_of(*runs: RunRecord, start: RunRecord | None = None) -> Curve | None:
    """The mean curve of the runs of one arm."""
    curves = wise_ft.seed_curves(group(runs)[0], None if start is None else group([start])[0])
    return wise_ft.mean_curve([*curves.values()])


def test_the_ends_are_the_zero_shot_and_the_tuned_model_unless_they_were_measured() -> None:
    tuned = run("fine_tune", 0, metrics(0.65, 0.34), merges=bent(0.65, 0.34))
    points = known(curve_of(tuned, start=zero_shot())).points
    assert [point.alpha for point in points] == [0, 0.25, 0.5, 0.75, 1]
    assert (points[0], points[-1]) == (Point(0, 0.55, 0.38), Point(1, 0.65, 0.34))
    merges = {f"wise_ft@{alpha}": metrics(0.6, 0.3) for alpha in (0, 0.5, 1)}
    curve = known(curve_of(replace(tuned, merges=merges), start=zero_shot()))
    assert {point[1:] for point in curve.points} == {(0.6, 0.3)}


def test_without_a_point_between_the_ends_there_is_no_curve() -> None:
    soup, broken = {"uniform_soup": metrics(0.7, 0.4)}, {"wise_ft@0.5": {"id/test/top1": 0.6}}
    for merges, start in (({}, zero_shot()), (soup, zero_shot()), (broken, None)):
        tuned = run("fine_tune", 0, metrics(0.65, 0.34), merges=merges)
        assert curve_of(tuned, start=start) is None


def test_a_mean_curve_keeps_shared_alphas() -> None:
    whole = run("fine_tune", 0, metrics(0.6, 0.3), merges=bent(0.6, 0.3))
    half = {"wise_ft@0.5": metrics(0.7, 0.5)}
    for merges, alphas in ((whole.merges, [0.25, 0.5, 0.75, 1]), (half, [0.5, 1])):
        other = run("fine_tune", 1, metrics(0.6, 0.3), merges=merges)
        assert [point.alpha for point in known(curve_of(whole, other)).points] == alphas


@pytest.mark.parametrize(
    ("id_accuracy", "chord", "most"),
    [
        (0.55, 0.35, 0.42),  # Bounded by the piece behind it, extended.
        (0.62, 0.392, 0.42),  # By the piece before it; behind it the curve turns back.
        (0.68, 0.368, 0.48),  # Passed twice, the second time lower.
        (0.49, None, None),
        (0.71, None, None),
    ],
)
def test_the_curve_is_bounded_by_the_chords_beside_it(
    id_accuracy: float, chord: float | None, most: float | None
) -> None:
    assert height(ARCH, id_accuracy) == (None if chord is None else pytest.approx(chord))
    assert bound(ARCH, id_accuracy) == (None if most is None else pytest.approx(most))


def test_a_piece_that_is_gone_back_on_the_same_line_is_bounded_nowhere() -> None:
    # Counts of 36 and 40 images: rounding put one of the two equal chords first, or the other.
    turn = (16 / 36, 11 / 24)
    back = ((12 / 36, 12 / 36), (13 / 36, 127 / 360), turn, (18 / 36, 89 / 180), turn)
    places = np.linspace(turn[0], 0.5, 66)[1:-1]
    assert {bound(back, place) for place in places} == {None}
    assert np.isnan(gain(ARCH, back))


def test_a_place_at_a_measured_point_is_of_both_of_its_pieces_whatever_rounding_says() -> None:
    # Nothing leads on to the piece before 0.6, whose end lies above the piece behind it.
    fall = ((0.5, 0.3), (0.6, 0.4), (0.6, 0.35), (0.7, 0.5), (0.8, 0.55))
    places = [np.nextafter(0.6, 0.5), 0.6, np.nextafter(0.6, 0.7)]
    assert [height(fall, place) for place in places] == pytest.approx([0.4] * 3)
    assert [bound(fall, place) for place in places] == [None] * 3


def test_a_single_point_is_compared_at_its_own_id_alone() -> None:
    point = ((0.62, 0.45),)
    assert gain(point, ARCH) == pytest.approx(0.45 - 0.42)
    assert gain(ARCH, point) == pytest.approx(0.392 - 0.45)
    assert gain(point, point) == 0
    assert np.isnan(gain(((0.8, 0.45),), ARCH))


def test_accuracies_that_differ_by_rounding_are_the_same_id() -> None:
    # Means over two tasks of 36 and 24 images: 1/2 of 1/36 + 15/24 and of 7/36 + 11/24 are equal.
    nearly = 0.6 + 2e-16
    assert nearly != 0.6
    even, uneven = (
        ((0.5, 0.3), (0.6, 0.4), (middle, 0.41), (0.7, 0.45), (0.8, 0.47))
        for middle in (0.6, nearly)
    )
    assert bound(uneven, 0.55) is None
    for place in (0.55, 0.65, 0.75):
        most = bound(even, place)
        assert bound(uneven, place) == (most and pytest.approx(most))
    assert gain(ARCH, uneven) == pytest.approx(gain(ARCH, even))
    # Curves that share no more than one accuracy have no range in common.
    assert np.isnan(gain(((0.4, 0.3), (0.5, 0.4), (nearly, 0.5)), ((0.6, 0.4), (0.7, 0.5))))


# IDs are of few images, so that many are equal and curves turn back; OODs are drawn, since chords
# that meet exactly leave open which of the two is the higher one.
def drawn(points: tuple[Sequence[int], int]) -> Points:
    ids, seed = points
    oods = np.random.default_rng(seed).random(len(ids))
    return [(step / 20, float(ood)) for step, ood in zip(ids, oods, strict=True)]


polylines = st.tuples(st.lists(st.integers(0, 20), min_size=1, max_size=7), st.integers(0, 2**32))
curves = polylines.map(drawn)
same_lengths = st.integers(1, 7).flatmap(
    lambda count: st.lists(
        st.tuples(
            st.lists(st.integers(0, 20), min_size=count, max_size=count), st.integers(0, 999)
        ),
        min_size=1,
        max_size=4,
    ).map(lambda lines: [drawn(line) for line in lines])
)
PLACES = [-0.01, *(np.sqrt(2) / 2 * np.arange(1, 29) / 20 + 0.001), 1.01]
"""Of no point, since those are multiples of 1/20."""


@given(same_lengths)
def test_heights_and_bounds_of_many_curves_are_those_of_each_place(curves: list[Points]) -> None:
    ids, oods = axes(*curves)
    at = np.tile(PLACES, (len(curves), 1))
    pairs = (
        (wise_ft.highest_on_chords, height_at),
        (wise_ft.ood_bound, most_at),
        (wise_ft.ood_floor, least_at),
    )
    for of_all, of_one in pairs:
        of_each = [[of_one(curve, place) for place in PLACES] for curve in curves]
        expected = np.array(of_each, dtype=np.float64)  # None is no number
        np.testing.assert_allclose(of_all(ids, oods, at), expected, rtol=0, atol=1e-9)


@given(same_lengths, curves)
def test_gains_of_many_curves_are_those_of_each_alone(own: list[Points], other: Points) -> None:
    assume(len(own[0]) > 1 and len(other) > 1)
    repeated = [other] * len(own)
    for ours, theirs in ((own, repeated), (repeated, own)):
        of_all = curve_gain(*axes(*ours), *axes(*theirs))
        of_each = [above(*pair, most_at) for pair in zip(ours, theirs, strict=True)]
        expected = np.array(of_each, dtype=np.float64)
        np.testing.assert_allclose(of_all, expected, rtol=0, atol=1e-9)


@given(curves)
def test_a_curve_gains_nothing_over_itself_and_lies_nowhere_above_its_bound(curve: Points) -> None:
    same = gain(curve, curve)
    assert np.isnan(same) or same <= 1e-12
    for accuracy, ood in curve:
        most = bound(curve, accuracy)
        is_upright = any(accuracy == start[0] == end[0] for start, end in itertools.pairwise(curve))
        assert most is None or is_upright or most >= ood - 1e-9


STEPS = np.linspace(0, 1, 6)
IDS = 0.4 + 0.1 * STEPS
INSIDE = np.linspace(0.401, 0.499, 57)


def parabola(by: float) -> Callable[[Numbers], Numbers]:
    """Return a parabola over ID, bent upwards by a positive number."""
    return lambda ids: 0.35 + by * (ids - 0.4) * (0.5 - ids)


@pytest.mark.parametrize("by", [8.0, 1.0, 0.0, -1.0, -8.0])
def test_a_curve_that_is_bent_one_way_lies_between_its_bounds(by: float) -> None:
    curve = parabola(by)
    low, high = (bound(IDS, curve(IDS), INSIDE) for bound in (wise_ft.ood_floor, wise_ft.ood_bound))
    assert np.all(low <= curve(INSIDE) + 1e-12)
    assert np.all(high >= curve(INSIDE) - 1e-12)


def test_the_lower_bound_is_the_upper_one_of_the_mirrored_curve() -> None:
    rng = np.random.default_rng(1)
    oods = 0.35 + 0.01 * rng.normal(size=(50, 6))
    ids = np.sort(0.4 + 0.1 * rng.random((50, 6)), axis=-1)
    at = ids[:, :1] + (ids[:, -1:] - ids[:, :1]) * np.linspace(0.01, 0.99, 20)
    assert wise_ft.ood_floor(ids, oods, at) == pytest.approx(-wise_ft.ood_bound(ids, -oods, at))


def test_nothing_bounds_two_points_and_one_point_is_itself() -> None:
    ends = np.array([0.4, 0.5])
    assert np.isnan(wise_ft.ood_floor(ends, ends, np.array([0.45]))).all()
    assert np.isnan(wise_ft.ood_bound(ends, ends, np.array([0.45]))).all()
    only = np.array([0.45])
    assert wise_ft.ood_floor(only, np.array([0.3]), only) == pytest.approx([0.3])
    assert np.isnan(curve_sag(ends, ends, IDS))
    assert curve_sag(only, np.array([0.3]), IDS) == curve_sag(only + 1, np.array([0.3]), IDS) == 0


def test_a_curve_that_is_bent_downwards_may_lie_below_its_chords_and_no_other() -> None:
    assert curve_sag(IDS, parabola(4.0)(IDS), IDS) == pytest.approx(0, abs=1e-12)
    assert curve_sag(IDS, parabola(0.0)(IDS), IDS) == pytest.approx(0, abs=1e-12)
    chords = wise_ft.highest_on_chords(IDS, parabola(-4.0)(IDS), INSIDE)
    true_sag = (chords - parabola(-4.0)(INSIDE)).mean()
    assert true_sag < curve_sag(IDS, parabola(-4.0)(IDS), IDS) < 6 * true_sag


@pytest.mark.parametrize("by", [8.0, 0.0, -8.0])
@pytest.mark.parametrize("lengths", [(1.0, 0.6), (0.6, 1.0), (1.0, 1.0)])
def test_no_part_of_a_curve_gains_over_another(by: float, lengths: tuple[float, float]) -> None:
    (ids, oods), (other_ids, other_oods) = (
        (0.4 + (IDS - 0.4) * length, parabola(by)(0.4 + (IDS - 0.4) * length)) for length in lengths
    )
    sag = curve_sag(ids, oods, other_ids)
    assert curve_gain(ids, oods, other_ids, other_oods) - sag <= 1e-12
    gains_by_chords = curve_gain(ids, oods, other_ids, other_oods) > 1e-6
    assert gains_by_chords == (by < 0 and lengths == (1.0, 0.6)), "which is why the sag is taken"
