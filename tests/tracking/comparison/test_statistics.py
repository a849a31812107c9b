"""Intervals and tests agree with published examples and with other people's code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats

from carft_sweep.tracking.comparison.statistics import (
    Estimate,
    ImageError,
    Interval,
    PairedTest,
    deciding_level,
    holm,
    mean,
    standard_error,
)

# Cushny and Peebles' sleep data, on which Student showed his t in 1908.
SLEEP = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
SLEEP_OTHER = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]


def paired(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    return PairedTest(tuple(one - two for one, two in zip(first, second, strict=True)))


accuracy = st.floats(0, 1).map(lambda value: round(value, 6))
accuracies = st.lists(accuracy, min_size=3, max_size=12)
p_values = st.lists(st.floats(0, 1), max_size=8)


def test_students_own_data_gives_students_t() -> None:
    result = paired(SLEEP, SLEEP_OTHER)
    assert len(result.differences) == 10
    assert result.mean == pytest.approx(1.58)
    assert result.p == pytest.approx(0.00283289, abs=1e-8)
    assert result.ci95 == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


@given(accuracies)
def test_intervals_are_those_of_scipy(values: list[float]) -> None:
    interval = Estimate(tuple(values)).ci95
    assert interval is not None
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    if error < 1e-9:
        assert interval.low == pytest.approx(interval.high, abs=1e-9)
        return
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
    assert interval == pytest.approx(expected, abs=1e-9)
    for bound in (0.0, 0.4):
        one_sided = stats.ttest_1samp(values, bound, alternative="greater")
        assert PairedTest(tuple(values)).p_above(bound) == pytest.approx(one_sided.pvalue, abs=1e-9)


@pytest.mark.parametrize("values", [(), (0.5,), (0.5, 0.6), (0.5, 0.6, 0.7, None)])
def test_an_interval_needs_three_values_and_all(values: tuple[float | None, ...]) -> None:
    assert Estimate(values).ci95 is None


@given(st.lists(st.tuples(accuracy, accuracy), min_size=1, max_size=8))
def test_a_paired_difference_turns_its_sign_with_its_sides(pairs: list[tuple]) -> None:
    first, second = zip(*pairs, strict=True)
    there, back = paired(first, second), paired(second, first)
    assert there.mean == -back.mean
    assert there.differences == tuple(-d for d in back.differences)
    assert there.p == back.p
    assert there.p_above(0.0) == back.p_below(0.0)
    if there.ci95 is None:
        assert back.ci95 is None
    else:
        assert back.ci95 == Interval(-there.ci95.high, -there.ci95.low)


@pytest.mark.parametrize(("step", "spreads"), [(0.0, True), (0.009, True), (0.01, False)])
def test_differences_spread_where_they_do_by_more_than_one_image(
    step: float, spreads: bool
) -> None:
    result = PairedTest((0.02, 0.03, 0.02, 0.025), step)
    assert result.spreads == spreads
    assert (result.p is not None) == (result.ci95 is not None) == spreads


def test_holms_adjustment_is_the_textbooks() -> None:
    # The example of the encyclopaedias, and R's p.adjust(c(.01, .04, .03, .005), "holm").
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    assert holm([0.2]) == (0.2,)
    assert holm([0.02, None, 0.01]) == (0.04, None, 0.03)


@given(p_values)
def test_holm_lies_between_the_raw_and_bonferronis(raw: list[float]) -> None:
    adjusted = [q for q in holm(raw) if q is not None]
    for p, q in zip(raw, adjusted, strict=True):
        assert p <= q <= min(1.0, len(raw) * p)
    assert sorted(zip(raw, adjusted, strict=True)) == list(
        zip(sorted(raw), sorted(adjusted), strict=True)
    )


def test_an_estimate_has_no_mean_when_one_seed_has_no_value() -> None:
    assert Estimate((0.5, None, 0.6)).mean is None
    assert Estimate(()).mean is None
    whole = Estimate((0.5, 0.6, 0.7))
    assert whole.mean == pytest.approx(0.6)
    assert whole.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)


images = st.builds(
    lambda se, freedom: ImageError(se**2, freedom, freedom + 1, freedom + 1),
    st.floats(1e-4, 0.5),
    st.integers(1, 2_000),
)
spread = st.lists(st.integers(-400, 400), min_size=3, max_size=10).filter(
    lambda values: max(values) > min(values)
)
tests = st.builds(
    lambda values, images: PairedTest(tuple(v / 1_000 for v in values), images=images),
    spread,
    st.none() | images,
)
levels = st.floats(0.5, 0.9999)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=9), st.lists(st.floats(-1, 1), min_size=3))
def test_the_error_over_seeds_and_images_is_that_of_welchs_test(
    seeds: list[float], others: list[float]
) -> None:
    # Two independent means: the degrees of freedom of their difference are Satterthwaite's too.
    assume(np.std(seeds) > 1e-3 and np.std(others) > 1e-3)
    of_others = ImageError(standard_error(others) ** 2, len(others) - 1, len(others), len(others))
    test = PairedTest(tuple(value - mean(others) for value in seeds), images=of_others)
    welch = stats.ttest_ind(seeds, others, equal_var=False)
    assert test.error.freedom == pytest.approx(welch.df)
    assert test.p == pytest.approx(welch.pvalue, abs=1e-9)
    assert test.ci95 == pytest.approx(tuple(welch.confidence_interval(0.95)), abs=1e-9)


def test_seeds_and_images_together_are_the_sum_by_hand() -> None:
    # s = 0.01 over 4 seeds: 0.005 over seeds, and 0.012 over images, so 0.013 in all.
    half = 0.01 * math.sqrt(3 / 2)
    values = (0.02 - half, 0.02, 0.02, 0.02 + half)
    test = PairedTest(values, images=ImageError(0.012**2, 99, 100, 100))
    assert test.error.size == pytest.approx(0.013)
    freedom = 0.013**4 / (0.005**4 / 3 + 0.012**4 / 99)
    assert test.error.freedom == pytest.approx(freedom)
    assert test.p == pytest.approx(2 * stats.t.sf(0.02 / 0.013, freedom))


@given(spread, images)
def test_images_only_add_to_the_error_and_their_freedom_is_between(
    values: list[int], of_images: ImageError
) -> None:
    alone = PairedTest(tuple(value / 1_000 for value in values))
    both = replace(alone, images=of_images)
    assert both.error.size >= alone.error.size
    least = min(alone.error.freedom, of_images.freedom)
    assert least - 1e-9 <= both.error.freedom <= alone.error.freedom + of_images.freedom + 1e-9
    none = replace(alone, images=of_images._replace(variance=0.0))
    assert (none.error.size, none.p) == (alone.error.size, pytest.approx(alone.p))


@given(tests, st.floats(-0.5, 0.5))
def test_one_sided_ps_are_the_tails_of_students_distribution(
    test: PairedTest, bound: float
) -> None:
    above, below = test.p_above(bound), test.p_below(bound)
    assert above is not None
    assert below is not None
    own = stats.t(test.error.freedom, loc=test.mean, scale=test.error.size)
    assert above == pytest.approx(own.cdf(bound), abs=1e-9)
    assert below == pytest.approx(own.sf(bound), abs=1e-9)
    assert test.p == pytest.approx(2 * min(own.cdf(0), own.sf(0)), abs=1e-9)


@given(tests, levels, st.floats(-0.3, 0.3))
def test_an_interval_is_all_that_a_one_sided_test_does_not_reject(
    test: PairedTest, level: float, bound: float
) -> None:
    interval, above, below = test.interval(level), test.p_above(bound), test.p_below(bound)
    assert interval is not None
    assert above is not None
    assert below is not None
    tail = (1 - level) / 2
    assume(min(abs(above - tail), abs(below - tail)) > 1e-9)
    assert (interval.low > bound) == (above < tail)
    assert (interval.high < bound) == (below < tail)


@given(st.lists(tests, min_size=1, max_size=5))
@example([PairedTest((0.1, 0.11, 0.12)), PairedTest((0.02, 0.021, 0.019))])
def test_the_interval_that_decides_excludes_0_where_the_adjusted_p_does(
    compared: list[PairedTest],
) -> None:
    ps = [test.p for test in compared]
    for test, p, adjusted in zip(compared, ps, holm(ps), strict=True):
        assert adjusted is not None
        assume(abs(adjusted - 0.05) > 1e-6)
        level = deciding_level(p, adjusted, len(compared))
        assert level + 1e-12 >= 0.95
        assert level <= 1 - 0.05 / len(compared) + 1e-12
        interval = test.interval(level)
        assert interval is not None
        assert (interval.low > 0 or interval.high < 0) == (adjusted < 0.05)


def test_the_level_that_decides_is_bonferronis_of_what_the_p_was_multiplied_by() -> None:
    assert deciding_level(0.01, 0.03, 3) == pytest.approx(1 - 0.05 / 3)
    assert deciding_level(0.02, 0.03, 3) == pytest.approx(1 - 0.05 / 1.5)
    assert deciding_level(0.02, 0.02, 1) == pytest.approx(0.95)
    # Where nothing is left of a p, and where there is none, it is that of all.
    for p, adjusted in ((0.5, 1.0), (0.0, 0.0), (None, None)):
        assert deciding_level(p, adjusted, 4) == pytest.approx(1 - 0.05 / 4)
