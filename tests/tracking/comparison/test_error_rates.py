"""How often intervals cover, and the verdict claims falsely, in ten thousand made-up comparisons.

The whole procedure (paired t, intersection-union, Holm) stands here once more for arrays; that it
is the same as `judge` is a test of its own. Fewer comparisons go through `compare` as a whole. At a
rate of 5 % one in a hundred such tests has more hits than MOST, at one of 2.5 % one in a thousand
more than MOST_ONE_SIDED.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from benchmarks.error_rates import (
    GAINS_NOTHING,
    LOSES_THE_MARGIN,
    Null,
    Truth,
    choice,
    claims,
    nulls,
    on_the_curve,
)
from carft_sweep.tracking.comparison.runs import group
from carft_sweep.tracking.comparison.spec import ALPHA, Endpoint
from carft_sweep.tracking.comparison.statistics import PairedTest, holm, t_interval
from carft_sweep.tracking.comparison.verdict import judge
from tests.tracking.made_up import arm

TIMES, SEEDS = 10_000, 5
MARGIN = Endpoint().id_margin
MOST = int(stats.binom.ppf(0.99, TIMES, 0.05))
MOST_ONE_SIDED = int(stats.binom.ppf(0.999, TIMES, 0.025))
Numbers = NDArray[np.float64]
Claims = NDArray[np.bool_]


def called(ood: Numbers, id_test: Numbers | None = None) -> tuple[Claims, Claims]:
    """[T, K] each: whether the differences [T, K, n] of a candidate are called others than none,
    and better; without those of ID it is kept for certain.
    """
    up = _p_above(ood, 0.0)
    kept = np.zeros_like(up) if id_test is None else _p_above(id_test, -MARGIN)
    different = _holm(2 * np.minimum(up, 1 - up)) < ALPHA
    return different, _holm(np.minimum(1, 2 * np.maximum(up, kept))) < ALPHA


def _p_above(differences: Numbers, bound: float) -> Numbers:
    n = differences.shape[-1]
    error = differences.std(axis=-1, ddof=1) / np.sqrt(n)
    p: Numbers = stats.t.sf((differences.mean(axis=-1) - bound) / error, n - 1)
    return p


def _holm(p: Numbers) -> Numbers:
    order = p.argsort(axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, stepped, axis=-1)
    return adjusted


def alarms(candidates: Numbers, reference: Numbers) -> Claims:
    """[T, K]: whether a candidate [T, K, n] is called other than the reference [T, n]."""
    return called(candidates - reference[:, None])[0]


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
    oods, ids = seeds(rng, 60, 4), seeds(rng, 60, 4)
    ids = ids.mean(axis=(1, 2), keepdims=True) + (ids - ids.mean(axis=(1, 2), keepdims=True)) / 8
    oods[::2, 1] += 0.03
    judged = []
    for time in range(60):
        base, *rivals = (
            group(arm(f"a_{k}", ids[time, k].tolist(), oods[time, k].tolist(), trial=k))[0]
            for k in range(4)
        )
        outcomes = [verdict.outcome for verdict in judge(rivals, base, Endpoint())]
        judged.append(
            (
                [outcome in {"better", "trade_off", "worse"} for outcome in outcomes],
                [outcome == "better" for outcome in outcomes],
            )
        )
    different, better = called(oods[:, 1:] - oods[:, :1], ids[:, 1:] - ids[:, :1])
    assert np.array_equal([each for each, _ in judged], different)
    assert np.array_equal([each for _, each in judged], better)
    assert 0 < np.sum(better) < np.sum(different) < 180


@pytest.mark.parametrize("rivals", [1, 3, 6, 20])
def test_what_gains_out_of_distribution_and_loses_the_margin_is_seldom_called_better(
    rivals: int,
) -> None:
    rng = np.random.default_rng(60 + rivals)
    oods, ids = seeds(rng, TIMES, rivals + 1), seeds(rng, TIMES, rivals + 1)
    oods[:, 1:] += 0.05
    ids[:, 1:] -= MARGIN
    _, better = called(oods[:, 1:] - oods[:, :1], ids[:, 1:] - ids[:, :1])
    assert 0 < better.any(axis=-1).sum() <= MOST_ONE_SIDED


@pytest.mark.parametrize("rivals", [1, 3, 6, 20])
def test_what_keeps_id_and_gains_nothing_is_seldom_called_better(rivals: int) -> None:
    rng = np.random.default_rng(80 + rivals)
    oods = seeds(rng, TIMES, rivals + 1)
    _, better = called(oods[:, 1:] - oods[:, :1])
    assert 0 < better.any(axis=-1).sum() <= MOST_ONE_SIDED


def test_what_gains_and_keeps_id_is_mostly_called_better() -> None:
    rng = np.random.default_rng(100)
    oods, ids = seeds(rng, TIMES, 4), seeds(rng, TIMES, 4) / 10
    oods[:, 1:] += 0.05
    _, better = called(oods[:, 1:] - oods[:, :1], ids[:, 1:] - ids[:, :1])
    assert better.mean() > 0.9


AMONG = "chosen among 20 settings on these same seeds, which p does not allow for"
DRAWS = 200
"""Of each null through the whole of `compare`; `python -m benchmarks.error_rates` has more."""


@pytest.mark.parametrize(
    ("number", "null"),
    [(number, null) for number, null in enumerate(nulls()) if null.nominal is not None],
    ids=lambda it: it.name if isinstance(it, Null) else "",
)
def test_what_the_page_promises_holds_through_the_whole_of_compare(number: int, null: Null) -> None:
    assert null.nominal is not None
    assert null.count(DRAWS, seed=number) <= stats.binom.ppf(0.999, DRAWS, null.nominal)


@pytest.mark.parametrize("truth", [LOSES_THE_MARGIN, GAINS_NOTHING], ids=["margin", "no gain"])
def test_a_choice_among_twenty_claims_too_often_and_says_among_how_many(truth: Truth) -> None:
    rng = np.random.default_rng(110)
    drawn = [choice(rng, truth, settings=20) for _ in range(DRAWS)]
    assert sum(claims(one, "better") for one in drawn) > stats.binom.ppf(0.999, DRAWS, 0.025)
    for one in drawn:
        assert one.verdicts[0].tried == 20
        assert "chosen among 20 settings" in one.answer.lines[0]
        assert one.verdicts[0].outcome != "better" or AMONG in one.statistics[0]


@pytest.mark.parametrize("truth", [LOSES_THE_MARGIN, GAINS_NOTHING], ids=["margin", "no gain"])
def test_a_choice_that_was_confirmed_says_so_and_counts_as_none(truth: Truth) -> None:
    rng = np.random.default_rng(120)
    for one in (choice(rng, truth, settings=20, confirmed=True) for _ in range(20)):
        assert (one.fresh_seeds, one.verdicts[0].tried) == ((5, 6, 7, 8, 9), 1)
        assert "chosen among" not in one.verdict
        assert "over 5 fresh seeds" in one.statistics[0]


@pytest.mark.parametrize("alpha", [0.375, 0.5, 0.625])
def test_a_model_well_above_the_curve_is_mostly_called_one(alpha: float) -> None:
    rng = np.random.default_rng(int(1000 * alpha) + 1)
    drawn = [on_the_curve(rng, alpha, more=0.03) for _ in range(100)]
    assert sum(claims(one, "more than WiSE-FT gives") for one in drawn) > 90


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
    alarm = alarms(both[:, 1:], both[:, 0])
    assert alarm[:, better:].any(axis=-1).sum() <= MOST
    assert alarm[:, :better].mean() > 0.9


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
