"""The WiSE-FT curve is read at equal ID accuracy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.comparison.runs import RunRecord, group
from carft_sweep.tracking.comparison.wise_ft import (
    Curve,
    Point,
    dominating,
    mean_curve,
    ood_bound,
    seed_curves,
)
from tests.tracking.made_up import bent, metrics, run, zero_shot

ARCH = Curve(
    "fine_tune",
    (Point(0, 0.5, 0.3), Point(0.25, 0.6, 0.4), Point(0.75, 0.7, 0.36), Point(1, 0.65, 0.2)),
)


def curve_of(*runs: RunRecord, start: RunRecord | None = None) -> Curve | None:
    """The mean curve of the runs of one arm."""
    curves = seed_curves(group(runs)[0], None if start is None else group([start])[0])
    return mean_curve([*curves.values()])


def test_the_ends_are_the_zero_shot_and_the_tuned_model() -> None:
    tuned = run("fine_tune", 0, metrics(0.65, 0.34), merges=bent(0.65, 0.34))
    curve = curve_of(tuned, start=zero_shot())
    assert curve is not None
    assert [point.alpha for point in curve.points] == [0, 0.25, 0.5, 0.75, 1]
    assert curve.points[0] == Point(0, 0.55, 0.38)
    assert curve.points[-1] == Point(1, 0.65, 0.34)


def test_measured_ends_stand_before_those_put_in() -> None:
    merges = {f"wise_ft@{alpha}": metrics(0.6, 0.3) for alpha in (0, 0.5, 1)}
    curve = curve_of(run("fine_tune", 0, metrics(0.9, 0.9), merges=merges), start=zero_shot())
    assert curve is not None
    assert {point[1:] for point in curve.points} == {(0.6, 0.3)}


def test_without_a_point_between_the_ends_there_is_no_curve() -> None:
    assert curve_of(run("fine_tune", 0, metrics(0.65, 0.34)), start=zero_shot()) is None
    soup = run("fine_tune", 0, metrics(0.6, 0.3), merges={"uniform_soup": metrics(0.7, 0.4)})
    assert curve_of(soup, start=zero_shot()) is None
    broken = run("fine_tune", 0, metrics(0.6, 0.3), merges={"wise_ft@0.5": {"id/test/top1": 0.6}})
    assert curve_of(broken) is None


def test_a_mean_curve_keeps_shared_alphas() -> None:
    whole = [run("fine_tune", s, metrics(0.6, 0.3), merges=bent(0.6, 0.3)) for s in range(2)]
    curve = curve_of(*whole)
    assert curve is not None
    assert [point.alpha for point in curve.points] == [0.25, 0.5, 0.75, 1]
    some = {"wise_ft@0.5": metrics(0.7, 0.5)}
    curve = curve_of(whole[0], run("fine_tune", 1, metrics(0.6, 0.3), merges=some))
    assert curve is not None
    assert [point.alpha for point in curve.points] == [0.5, 1]


@pytest.mark.parametrize(
    ("id_accuracy", "expected"),
    [
        (0.5, 0.3),
        (0.55, 0.42),  # On the chord from 0.75 to 0.25, extended; the chord itself has 0.35.
        (0.6, 0.4),
        (0.62, 0.42),  # On the chord from 0 to 0.25, extended; behind it the curve turns back.
        (0.65, 0.45),  # Passed twice, the second time at 0.2.
        (0.7, 0.36),
        (0.49, None),
        (0.71, None),
    ],
)
def test_the_curve_is_bounded_by_the_chords_beside_it(
    id_accuracy: float, expected: float | None
) -> None:
    bound = ood_bound(ARCH, id_accuracy)
    assert bound == (None if expected is None else pytest.approx(expected))


def test_of_two_chords_that_lead_on_the_lower_one_bounds() -> None:
    arch = Curve(
        "x", (Point(0, 0.5, 0.3), Point(0.4, 0.6, 0.4), Point(0.6, 0.7, 0.42), Point(1, 0.8, 0.3))
    )
    assert ood_bound(arch, 0.61) == pytest.approx(0.41)  # of 0.41 and 0.528
    assert ood_bound(arch, 0.69) == pytest.approx(0.432)  # of 0.49 and 0.432


def test_a_curve_bent_downwards_is_bounded_by_its_own_chord() -> None:
    sagging = Curve(
        "x", (Point(0, 0.5, 0.5), Point(0.4, 0.6, 0.4), Point(0.6, 0.7, 0.4), Point(1, 0.8, 0.5))
    )
    assert ood_bound(sagging, 0.65) == pytest.approx(0.4)


def test_a_curve_of_one_piece_up_and_one_back_is_bounded_nowhere_between() -> None:
    corner = Curve("x", (Point(0, 0.5, 0.3), Point(0.5, 0.6, 0.4), Point(1, 0.55, 0.2)))
    assert ood_bound(corner, 0.58) is None
    assert ood_bound(corner, 0.6) == 0.4


def test_an_upright_piece_is_bounded_by_its_top() -> None:
    upright = Curve("x", (Point(0, 0.5, 0.3), Point(0.5, 0.5, 0.4), Point(1, 0.5, 0.2)))
    assert ood_bound(upright, 0.5) == 0.4


@given(st.floats(0.3, 1.2), st.floats(-0.1, 0.1), st.floats(0, 0.3), st.floats(0.01, 0.99))
def test_a_curve_that_is_bent_upwards_lies_nowhere_above_its_bound(
    rise: float, slope: float, bend: float, alpha: float
) -> None:
    def at(alpha: float) -> Point:
        return Point(
            alpha, 0.5 + rise * alpha / 10, 0.4 + slope * alpha + bend * alpha * (1 - alpha)
        )

    bound = ood_bound(Curve("x", tuple(at(i / 4) for i in range(5))), at(alpha).id)
    assert bound is not None
    assert bound >= at(alpha).ood - 1e-9


fractions = st.floats(0, 1)
curves = st.lists(st.tuples(fractions, fractions), min_size=2, max_size=6).map(
    lambda ends: Curve("x", tuple(Point(i / 8, *end) for i, end in enumerate(ends)))
)


@given(curves)
def test_no_point_of_a_curve_lies_above_its_bound(curve: Curve) -> None:
    for point in curve.points:
        bound = ood_bound(curve, point.id)
        assert bound is None or bound >= point.ood - 1e-9


def test_a_model_that_is_as_good_on_both_and_better_on_one_dominates() -> None:
    assert dominating(ARCH, 0.58, 0.39) == ARCH.points[1]
    assert dominating(ARCH, 0.6, 0.35) == ARCH.points[1]
    assert dominating(ARCH, 0.6, 0.4) is None
    assert dominating(ARCH, 0.71, 0.1) is None
