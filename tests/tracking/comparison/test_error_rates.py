"""How often intervals cover, and the verdict claims falsely, in ten thousand made-up comparisons.

The whole procedure (paired t, intersection-union, Holm) stands here once more for arrays; that it
is the same as `judge` is a test of its own. Fewer comparisons go through `compare` as a whole. At a
rate of 5 % one in a hundred such tests has more hits than MOST, at one of 2.5 % one in a thousand
more than MOST_ONE_SIDED.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from benchmarks.error_rates import (
    COUNTS,
    LARGE,
    Claim,
    Method,
    Row,
    Truth,
    World,
    claims,
    constant,
    crossing,
    curves,
    main,
    rivals,
    rows,
)
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.hits import KeptHits
from carft_sweep.tracking.comparison.runs import group
from carft_sweep.tracking.comparison.spec import Endpoint
from carft_sweep.tracking.comparison.statistics import ALPHA, Estimate, PairedTest, holm
from carft_sweep.tracking.comparison.verdict import DIFFERENT, judge
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
    intervals = [Estimate(tuple(draw(rng).tolist())).ci95 for _ in range(TIMES)]
    covered = sum(low <= centre <= high for low, high in filter(None, intervals))
    assert 0.93 <= covered / TIMES <= 0.97


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
        outcomes = [verdict.outcome for verdict in judge(rivals, base, Endpoint(), KeptHits())]
        judged.append(
            (
                [outcome in DIFFERENT for outcome in outcomes],
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


RIVAL = Method("rival")
LOSES_THE_MARGIN = Method("rival", id=-MARGIN, ood=constant(LARGE))
TRIED = (
    "1 rival, equal; *",
    "6 rivals, equal; population; *",
    "1 rival, OOD gains, ID loses exactly the margin; *",
    "1 rival, ID gains, OOD does not; these images; seeds",
    "the highest of 5 equal models; population; *",
    "best of 4 settings judged on fresh seeds, OOD gains*; population; *",
    "curve: the same, concave, 100 % against 100 %, 9 alphas; *",
    "curve: crossing, +2 points first, 9 alphas; *; seeds and images",
    "curve: one model on it at alpha 0.375, 5 alphas; *; seeds and images",
)
"""Rows of the table that go through the whole of `compare` here too, with few draws."""
DRAWS, DRAWS_WITH_IMAGES = 100, 30
"""`python -m benchmarks.error_rates` has more."""


@pytest.mark.parametrize(
    "row",
    [row for row in rows() if any(fnmatch(row.name, pattern) for pattern in TRIED)],
    ids=lambda row: row.name,
)
def test_what_the_page_promises_holds_through_the_whole_of_compare(row: Row) -> None:
    draws = DRAWS_WITH_IMAGES if row.keeps else DRAWS
    for claim, count in row.count(draws).items():
        nominal = row.claims[claim]
        assert nominal is not None
        assert count <= stats.binom.ppf(0.999, draws, nominal)


def test_the_counts_that_are_kept_make_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["error_rates", "--draws", "0"])
    main()
    lines = capsys.readouterr().out.splitlines()[2:]
    counts = json.loads(COUNTS.read_text())
    assert len(lines) == sum(len(row.claims) for row in rows() if row.name in counts) > 100
    for row in rows():
        promised = ((claim, rate) for claim, rate in row.claims.items() if rate is not None)
        for claim, rate in promised:
            count, draws = counts[row.name][claim], counts[row.name]["draws"]
            assert count <= stats.binom.ppf(0.999, draws, rate), row.name


def test_a_rate_is_counted_until_it_is_known_and_a_power_in_two_thousand_draws() -> None:
    rate = next(row for row in rows() if row.world.startswith("curve: the same"))
    power = next(row for row in rows() if row.world.startswith("power"))
    never = {"draws": 1000, "better curve": 0, "worse curve": 0}
    assert rate.is_counted(never, 10_000)
    assert not rate.is_counted({**never, "worse curve": 20}, 10_000)
    assert not power.is_counted(never, 10_000)
    assert power.is_counted({**never, "draws": 2000}, 10_000)


def test_each_pattern_is_of_a_row_and_each_row_has_a_name_of_its_own() -> None:
    names = [row.name for row in rows()]
    assert len(names) == len({*names})
    assert all(any(fnmatch(name, pattern) for name in names) for pattern in TRIED)


def share(
    claim: Claim, draws: int, draw: Callable[[World], Comparison], truth: Truth, alphas: int = 0
) -> float:
    """Count in how many worlds of this truth something is claimed."""
    rng = np.random.default_rng(draws)
    return sum(claims(draw(World(rng, truth, alphas=alphas)), claim) for _ in range(draws)) / draws


def test_without_images_more_is_claimed_of_the_population_than_is_promised() -> None:
    def without(world: World) -> Comparison:
        return rivals(world, RIVAL, 1, keeps=False)

    def both(world: World) -> Comparison:
        return rivals(world, RIVAL, 1)

    assert share("different", 100, without, "population") > 0.12
    assert share("different", 100, both, "population") < 0.10
    assert share("different", 100, without, "these images") < 0.12


@pytest.mark.parametrize("alphas", [5, 9])
def test_a_curve_that_is_a_point_higher_is_mostly_called_better(alphas: int) -> None:
    higher = partial(curves, rival=replace(RIVAL, ood=constant(0.01)), keeps=False)
    lower = partial(curves, rival=replace(RIVAL, ood=constant(-0.01)), keeps=False)
    assert share("better curve", 30, higher, "these images", alphas) > 0.8
    assert share("worse curve", 30, lower, "these images", alphas) > 0.8


@pytest.mark.parametrize(
    "method",
    [
        Method("rival", reach=0.6),
        Method("rival", ood=crossing(0.02)),
        Method("rival", ood=constant(0.01)),
        LOSES_THE_MARGIN,
    ],
    ids=["shorter", "crossing", "gain", "margin"],
)
def test_these_images_have_the_wanted_truth_over_all_seeds(method: Method) -> None:
    world = World(np.random.default_rng(1), "these images", alphas=5)
    base = Method("fine_tune", reach=method.reach)
    means = []
    for it in (method, base):
        runs = [world.run(it, seed) for seed in range(400)]
        of_labels = [[run.metrics_of(label) for run in runs] for label in (*runs[0].merges, None)]
        means.append(
            [
                [np.mean([run[metric] for run in of_label]) for of_label in of_labels]
                for metric in ("id/test/top1", "ood/mean/top1")
            ]
        )
    (ids, oods), (base_ids, base_oods) = np.array(means)
    start = world.zero_shot().metrics["id/test/top1"]
    expected = method.ood((base_ids - start) / (base_ids[-1] - start))
    assert ids - base_ids == pytest.approx(np.full(4, method.id), abs=0.0015)
    assert oods - base_oods == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize("rivals", [1, 3, 10])
def test_equal_methods_are_called_different_in_at_most_one_of_twenty_comparisons(
    rivals: int,
) -> None:
    rng = np.random.default_rng(rivals)
    both = seeds(rng, TIMES, rivals + 1)
    assert alarms(both[:, 1:], both[:, 0]).any(axis=-1).sum() <= MOST


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
        assert [q is not None and q < 0.05 for q in holm(p)] == list(rejected)
