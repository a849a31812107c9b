"""The signed-rank test is Wilcoxon's own, and scipy's wherever scipy counts instead of guessing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tracking.comparison.statistics import FEWEST_RANKED, paired, signed_rank_p

# Darwin's maize, crossed minus self-fertilised; R's wilcox.test(exact = TRUE) on such data, and
# the table of Wilcoxon 1945, give T = 24 for 15 pairs: two-sided p = 0.04126.
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]

distinct = st.lists(st.integers(1, 10_000), min_size=1, max_size=50, unique=True)
"""Sizes without zeros and equals: there scipy's `auto` is exact up to 50."""
coarse = st.lists(st.integers(-3, 3), min_size=2, max_size=8)
"""Accuracies of a few images: full of zeros and equals. scipy counts all signs up to 13."""


def test_darwins_maize_gives_the_tabulated_p() -> None:
    assert signed_rank_p(MAIZE) == pytest.approx(0.04126, abs=1e-5)
    assert signed_rank_p(MAIZE) == pytest.approx(stats.wilcoxon(MAIZE).pvalue, abs=1e-12)


@given(distinct, st.randoms(use_true_random=False))
def test_without_zeros_and_equals_it_is_scipys_exact_test(sizes: list[int], random: object) -> None:
    signed = [size * random.choice([-1, 1]) for size in sizes]  # type: ignore[attr-defined]
    theirs = stats.wilcoxon(signed, method="exact").pvalue
    assert signed_rank_p(signed) == pytest.approx(theirs, abs=1e-12)


@given(coarse)
@settings(max_examples=30, deadline=None)
def test_zeros_and_equals_are_handled_as_scipy_counts_them(differences: list[int]) -> None:
    if not any(differences):
        assert signed_rank_p(differences) == 1.0
        return
    theirs = stats.wilcoxon(
        differences, zero_method="wilcox", method=stats.PermutationMethod(n_resamples=np.inf)
    )
    assert signed_rank_p(differences) == pytest.approx(theirs.pvalue, abs=1e-12)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=20))
def test_the_sign_of_all_and_their_unit_and_order_change_nothing(differences: list[int]) -> None:
    p = signed_rank_p(differences)
    assert 0 < p <= 1
    assert signed_rank_p([-d for d in differences]) == p
    assert signed_rank_p([d / 1000 for d in reversed(differences)]) == p


def test_differences_that_are_equal_but_for_rounding_share_their_rank() -> None:
    noisy = [0.36 - 0.35, 0.02 - 0.03, 0.02, 0.0, 1e-17, 0.01]
    assert len({abs(value) for value in noisy}) == len(noisy)
    assert signed_rank_p(noisy) == signed_rank_p([1, -1, 2, 0, 0, 1])


def test_many_pairs_are_counted_too() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, 200)
    theirs = stats.wilcoxon(differences, method="exact").pvalue
    assert signed_rank_p(list(differences)) == pytest.approx(theirs, rel=1e-9)


def test_it_is_offered_from_the_number_of_pairs_where_it_can_show_something() -> None:
    ours = [0.01 * (seed + 1) for seed in range(FEWEST_RANKED)]
    smallest = {n: signed_rank_p(ours[:n]) for n in (5, 6)}
    assert smallest == {5: 0.0625, 6: 0.03125}
    five, six = (paired(ours[:n], [0.0] * n) for n in (5, 6))
    assert (five.p_signed_rank, six.p_signed_rank) == (None, 0.03125)
    assert six.as_dict()["p_signed_rank"] == 0.03125
