"""The WiSE-FT curve is read at equal ID accuracy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tracking.made_up import bent, metrics, run, zero_shot
from tracking.comparison.runs import RunRecord, group
from tracking.comparison.wise_ft import (
    Curve,
    Point,
    dominating,
    mean_curve,
    ood_at,
    seed_curves,
)

ARCH = Curve(
    "fine_tune",
    (Point(0, 0.5, 0.3), Point(0.25, 0.6, 0.4), Point(0.75, 0.7, 0.36), Point(1, 0.65, 0.2)),
)


def curve_of(*runs: RunRecord, start: RunRecord | None = None) -> Curve | None:
    """The mean curve of the runs of one arm."""
    arm = group(runs)[0]
    return mean_curve(arm, seed_curves(arm, None if start is None else group([start])[0]))


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


def test_a_mean_curve_needs_every_seed_and_keeps_shared_alphas() -> None:
    whole = [run("fine_tune", s, metrics(0.6, 0.3), merges=bent(0.6, 0.3)) for s in range(2)]
    curve = curve_of(*whole)
    assert curve is not None
    assert [point.alpha for point in curve.points] == [0.25, 0.5, 0.75, 1]
    some = {"wise_ft@0.5": metrics(0.7, 0.5)}
    curve = curve_of(whole[0], run("fine_tune", 1, metrics(0.6, 0.3), merges=some))
    assert curve is not None
    assert [point.alpha for point in curve.points] == [0.5, 1]
    assert curve_of(whole[0], run("fine_tune", 1, metrics(0.6, 0.3))) is None


@pytest.mark.parametrize(
    ("id_accuracy", "expected"),
    [
        (0.5, 0.3),
        (0.55, 0.35),
        (0.6, 0.4),
        (0.65, 0.38),  # Passed twice: 0.38 on the way up, 0.2 at the end.
        (0.68, 0.368),
        (0.7, 0.36),
        (0.49, None),
        (0.71, None),
    ],
)
def test_the_curve_is_read_linearly_and_at_its_highest(
    id_accuracy: float, expected: float | None
) -> None:
    height = ood_at(ARCH, id_accuracy)
    assert height == (None if expected is None else pytest.approx(expected))


def test_an_upright_piece_is_read_at_its_top() -> None:
    upright = Curve("x", (Point(0, 0.5, 0.3), Point(0.5, 0.5, 0.4), Point(1, 0.5, 0.2)))
    assert ood_at(upright, 0.5) == 0.4


fractions = st.floats(0, 1)
curves = st.lists(st.tuples(fractions, fractions), min_size=2, max_size=6).map(
    lambda ends: Curve("x", tuple(Point(i / 8, *end) for i, end in enumerate(ends)))
)


@given(curves)
def test_no_point_of_a_curve_lies_above_it(curve: Curve) -> None:
    for point in curve.points:
        height = ood_at(curve, point.id)
        assert height is not None
        assert height >= point.ood - 1e-9


def test_a_model_that_is_as_good_on_both_and_better_on_one_dominates() -> None:
    assert dominating(ARCH, 0.58, 0.39) == ARCH.points[1]
    assert dominating(ARCH, 0.6, 0.35) == ARCH.points[1]
    assert dominating(ARCH, 0.6, 0.4) is None
    assert dominating(ARCH, 0.71, 0.1) is None
