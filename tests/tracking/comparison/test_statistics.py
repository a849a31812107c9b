"""Intervals and tests agree with published examples and with other people's code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from carft_sweep.tracking.comparison.statistics import (
    Interval,
    PairedTest,
    cluster_bootstrap,
    estimate,
    holm,
    mean,
    percentile_interval,
    standard_error,
    t_interval,
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


def test_the_interval_of_three_seeds_is_the_one_by_hand() -> None:
    # s = 0.01, t(2, 0.975) = 4.302653: half = 4.302653 * 0.01 / sqrt(3).
    interval = t_interval([0.30, 0.31, 0.32])
    assert interval == pytest.approx((0.31 - 0.0248414, 0.31 + 0.0248414), abs=1e-6)


@given(accuracies)
def test_intervals_are_those_of_scipy(values: list[float]) -> None:
    interval = t_interval(values)
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


@given(accuracies)
def test_an_interval_contains_its_mean(values: list[float]) -> None:
    interval = t_interval(values)
    assert interval is not None
    assert interval.low <= mean(values) <= interval.high


@given(accuracies, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_changes_nothing(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mean(shuffled) == mean(values)
    assert standard_error(shuffled) == standard_error(values)
    assert t_interval(shuffled) == t_interval(values)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.6], [0.5, 0.6, math.nan], [math.inf] * 3])
def test_there_is_no_interval_without_three_finite_values(values: list[float]) -> None:
    assert t_interval(values) is None


@given(st.lists(st.tuples(accuracy, accuracy), min_size=1, max_size=8))
def test_a_paired_difference_turns_its_sign_with_its_sides(pairs: list[tuple]) -> None:
    first, second = zip(*pairs, strict=True)
    there, back = paired(first, second), paired(second, first)
    assert there.mean == -back.mean
    assert there.differences == tuple(-d for d in back.differences)
    assert there.p == back.p
    if there.ci95 is None:
        assert back.ci95 is None
    else:
        assert back.ci95 == Interval(-there.ci95.high, -there.ci95.low)


@given(st.lists(st.tuples(accuracy, accuracy), min_size=3, max_size=8))
def test_the_paired_test_is_scipys(pairs: list[tuple]) -> None:
    first, second = zip(*pairs, strict=True)
    interval = paired(first, second)
    if standard_error(interval.differences) > 1e-6:
        assert interval.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=1e-7)


def test_equal_runs_are_no_difference() -> None:
    result = paired([0.4, 0.5, 0.6], [0.4, 0.5, 0.6])
    assert (result.mean, result.p) == (0, None)
    assert result.ci95 is None


def test_equal_differences_are_not_tested() -> None:
    result = paired([0.41, 0.51, 0.61], [0.40, 0.50, 0.60])
    assert (result.p, result.p_above(0.0), result.ci95) == (None, None, None)


@pytest.mark.parametrize(("step", "spreads"), [(0.0, True), (0.009, True), (0.01, False)])
def test_differences_spread_where_they_do_by_more_than_one_image(
    step: float, spreads: bool
) -> None:
    result = PairedTest((0.02, 0.03, 0.02, 0.025), step)
    assert result.spreads == spreads
    assert (result.p is not None) == (result.ci95 is not None) == spreads


def test_below_three_pairs_there_is_no_t_test() -> None:
    two = paired([0.5, 0.7], [0.4, 0.5])
    assert (two.p, two.ci95, two.p_above(0.0)) == (None, None, None)


def test_holms_adjustment_is_the_textbooks() -> None:
    # The example of the encyclopaedias, and R's p.adjust(c(.01, .04, .03, .005), "holm").
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    assert holm([0.2]) == (0.2,)


@given(p_values)
def test_holm_lies_between_the_raw_and_bonferronis(raw: list[float]) -> None:
    adjusted = holm(raw)
    for p, q in zip(raw, adjusted, strict=True):
        assert p <= q <= min(1.0, len(raw) * p)
    assert sorted(zip(raw, adjusted, strict=True)) == list(
        zip(sorted(raw), sorted(adjusted), strict=True)
    )


def test_an_estimate_has_no_mean_when_one_seed_has_no_value() -> None:
    assert estimate([0.5, None, 0.6]).mean is None
    assert estimate([0.5, math.nan]).values == (0.5, None)
    assert estimate([]).mean is None
    whole = estimate([0.5, 0.6, 0.7])
    assert whole.mean == pytest.approx(0.6)
    assert whole.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)


def by_unit(values: Sequence[Sequence[float]]) -> tuple:
    """One split: the items of each unit."""
    totals = np.array([[float(sum(unit))] for unit in values])
    counts = np.array([[len(unit)] for unit in values])
    return totals, counts


def test_the_bootstrap_spreads_like_the_standard_error() -> None:
    values = np.random.default_rng(2).random(400)
    draws = cluster_bootstrap(*by_unit([[value] for value in values]))
    assert draws.shape == (2_000, 1)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.002)
    assert draws.std() == pytest.approx(values.std() / math.sqrt(400), rel=0.06)


def test_views_of_one_drawing_are_no_more_evidence_than_one() -> None:
    values = (np.random.default_rng(3).random(200) < 0.4).astype(float)
    once = cluster_bootstrap(*by_unit([[value] for value in values]), seed=4)
    often = cluster_bootstrap(*by_unit([[value] * 6 for value in values]), seed=4)
    np.testing.assert_allclose(once, often)


def test_shared_units_move_splits_together_and_others_do_not() -> None:
    values = np.random.default_rng(5).random((300, 1))
    ones = np.ones((300, 1), dtype=np.int64)
    shared = cluster_bootstrap(np.hstack([values, values]), np.hstack([ones, ones]))
    np.testing.assert_array_equal(shared[:, 0], shared[:, 1])
    none = np.zeros_like(ones)
    apart = cluster_bootstrap(
        np.vstack([np.hstack([values, 0 * values]), np.hstack([0 * values, values])]),
        np.vstack([np.hstack([ones, none]), np.hstack([none, ones])]),
    )
    correlation = np.atleast_2d(np.corrcoef(apart.T))[0, 1]
    assert abs(correlation) < 0.08


def test_the_bootstrap_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for index in range(200):
        hits = (rng.random(80) < 0.6).astype(float)
        draws = cluster_bootstrap(*by_unit([[h] for h in hits]), resamples=400, seed=index)
        low, high = percentile_interval(draws[:, 0])
        covered += low <= 0.6 <= high
    assert 0.89 <= covered / 200 <= 0.985


def test_the_bootstrap_of_whole_units_is_scipys_of_units() -> None:
    rng = np.random.default_rng(7)
    counts = rng.integers(1, 7, (150, 1))  # views of a drawing
    totals = rng.binomial(counts, rng.beta(3, 2, (150, 1))).astype(np.float64)
    interval = percentile_interval(cluster_bootstrap(totals, counts, resamples=20_000)[:, 0])
    expected = stats.bootstrap(
        (totals[:, 0], counts[:, 0]),
        lambda hits, items, axis: hits.sum(axis=axis) / items.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=rng,
    ).confidence_interval
    width = expected.high - expected.low
    assert interval == pytest.approx(expected, abs=0.03 * width)
    # Accelerated and corrected for bias it lies at nearly the same place: no need for more.
    bca = stats.bootstrap(
        (totals[:, 0] / counts[:, 0],), np.mean, method="BCa", n_resamples=5_000, rng=rng
    ).confidence_interval
    even = percentile_interval(
        cluster_bootstrap(totals / counts, np.ones_like(counts), resamples=5_000)[:, 0]
    )
    assert even == pytest.approx(bca, abs=0.06 * (bca.high - bca.low))


def test_the_bootstrap_gives_the_same_draws_for_the_same_seed() -> None:
    data = by_unit([[1.0], [0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(cluster_bootstrap(*data), cluster_bootstrap(*data))
    assert not np.array_equal(cluster_bootstrap(*data), cluster_bootstrap(*data, seed=1))
