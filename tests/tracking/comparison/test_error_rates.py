"""How often intervals cover, and the verdict alarms falsely, in ten thousand made-up comparisons.

The whole procedure (paired t, Holm) stands here once more for arrays; that it is the same as
`judge` is a test of its own. With 10,000 trials at 5 % more than 551 hits are beyond a 99 % bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from tests.tracking.made_up import arm
from tracking.comparison.runs import group
from tracking.comparison.spec import ALPHA, Endpoint
from tracking.comparison.statistics import PairedTest, holm, t_interval
from tracking.comparison.verdict import judge

TIMES, SEEDS = 10_000, 5
MOST = int(stats.binom.ppf(0.99, TIMES, 0.05))
Numbers = NDArray[np.float64]


def alarms(candidates: Numbers, reference: Numbers) -> NDArray[np.bool_]:
    """[T, K]: whether a candidate [T, K, n] is called other than the reference [T, n]."""
    differences = candidates - reference[:, None]
    n = differences.shape[-1]
    error = differences.std(axis=-1, ddof=1) / np.sqrt(n)
    p = 2 * stats.t.sf(abs(differences.mean(axis=-1)) / error, n - 1)
    order = p.argsort(axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, stepped, axis=-1)
    return adjusted < ALPHA


def seeds(rng: np.random.Generator, *shape: int) -> Numbers:
    """OOD accuracies of equal methods: a part that seeds share (the split), and their own luck."""
    shared = 0.01 * rng.normal(size=(shape[0], 1, SEEDS))
    return 0.4 + shared + 0.01 * rng.normal(size=(*shape, SEEDS))


@pytest.mark.parametrize(
    ("draw", "centre"),
    [
        (lambda rng: rng.normal(0.6, 0.01, SEEDS), 0.6),
        (lambda rng: rng.binomial(2_000, rng.beta(180, 120, SEEDS)) / 2_000, 0.6),
        (lambda rng: 0.6 + 0.01 * rng.gamma(8.0, size=SEEDS), 0.68),
        (lambda rng: 0.01 * (rng.exponential(size=SEEDS) - rng.exponential(size=SEEDS)), 0.0),
    ],
    ids=["normal", "images", "skewed", "difference of very skewed"],
)
def test_the_interval_over_five_seeds_covers_as_often_as_it_says(
    draw: Callable[[np.random.Generator], Numbers], centre: float
) -> None:
    rng = np.random.default_rng(1)
    intervals = [t_interval(draw(rng).tolist()) for _ in range(TIMES)]
    covered = sum(low <= centre <= high for low, high in filter(None, intervals))
    assert 0.93 <= covered / TIMES <= 0.97


def test_the_limit_that_the_page_names_is_where_it_says() -> None:
    rng = np.random.default_rng(2)
    intervals = [t_interval(rng.exponential(size=SEEDS).tolist()) for _ in range(TIMES)]
    covered = sum(low <= 1.0 <= high for low, high in filter(None, intervals))
    assert 0.87 <= covered / TIMES <= 0.90


def test_the_procedure_for_arrays_is_the_one_that_judges() -> None:
    rng = np.random.default_rng(3)
    candidates, reference = seeds(rng, 60, 3), seeds(rng, 60, 1)[:, 0]
    candidates[::2, 0] += 0.03
    claims = []
    for time in range(60):
        base = group(arm("fine_tune", [0.6] * SEEDS, reference[time].tolist()))[0]
        rivals = [
            group(arm(f"rival_{k}", [0.6] * SEEDS, candidates[time, k].tolist(), trial=k))[0]
            for k in range(3)
        ]
        outcomes = [verdict.outcome for verdict in judge(rivals, base, Endpoint())]
        claims.append([outcome in {"better", "trade_off", "worse"} for outcome in outcomes])
    assert np.array_equal(claims, alarms(candidates, reference))
    assert 0 < np.sum(claims) < 180


@pytest.mark.parametrize("rivals", [1, 3, 10])
def test_equal_methods_are_called_different_in_at_most_one_of_twenty_comparisons(
    rivals: int,
) -> None:
    rng = np.random.default_rng(rivals)
    both = seeds(rng, TIMES, rivals + 1)
    assert alarms(both[:, 1:], both[:, 0]).any(axis=-1).sum() <= MOST


@pytest.mark.parametrize("better", [1, 2])
def test_methods_that_are_better_leave_the_equal_one_its_error_rate(better: int) -> None:
    rng = np.random.default_rng(20 + better)
    both = seeds(rng, TIMES, 4)
    both[:, 1 : 1 + better] += 0.05
    called = alarms(both[:, 1:], both[:, 0])
    assert called[:, better:].any(axis=-1).sum() <= MOST
    assert called[:, :better].mean() > 0.9


def test_skewed_seeds_do_not_raise_the_error_rate() -> None:
    rng = np.random.default_rng(30)
    both = 0.4 + 0.01 * rng.exponential(size=(TIMES, 4, SEEDS))
    assert alarms(both[:, 1:], both[:, 0]).any(axis=-1).sum() <= MOST


def test_the_best_of_many_alarms_too_often_on_its_own_seeds_and_not_on_fresh_ones() -> None:
    rng = np.random.default_rng(40)
    both = seeds(rng, TIMES, 21)
    settings, reference = both[:, 1:], both[:, 0]
    # What makes a seed lucky on validation images makes it lucky elsewhere too.
    validation = settings.mean(axis=-1) + 0.003 * rng.normal(size=(TIMES, 20))
    taken = settings[np.arange(TIMES), validation.argmax(axis=-1)]
    assert alarms(taken[:, None], reference).sum() > 2 * MOST
    again = seeds(rng, TIMES, 2)
    assert alarms(again[:, :1], again[:, 1]).sum() <= MOST


def test_paired_tests_and_holm_agree_with_other_peoples_on_the_same_data() -> None:
    rng = np.random.default_rng(50)
    for reference, *candidates in seeds(rng, 3, 9):
        tests = [PairedTest(tuple((one - reference).tolist())) for one in candidates]
        expected = [stats.ttest_rel(one, reference) for one in candidates]
        p = [pair.p or 0.0 for pair in tests]
        assert p == pytest.approx([result.pvalue for result in expected], abs=1e-12)
        ends = [end for result in expected for end in result.confidence_interval()]
        assert [end for pair in tests for end in pair.ci95 or ()] == pytest.approx(ends, abs=1e-12)
        rejected, adjusted, *_ = multipletests(p, alpha=0.05, method="holm")
        assert holm(p) == pytest.approx(adjusted, abs=1e-12)
        assert [q < 0.05 for q in holm(p)] == list(rejected)
