"""How often intervals cover, and the verdict claims falsely, in ten thousand made-up comparisons.

The whole procedure (paired t, intersection-union, Holm) stands here once more for arrays; that it
is the same as `judge` is a test of its own. Fewer comparisons go through `compare` as a whole. At a
rate of 5 % one in a hundred such tests has more hits than MOST, at one of 2.5 % one in a thousand
more than MOST_ONE_SIDED.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from benchmarks import error_rates as rates
from benchmarks.error_rates import Claim, Method, Row, Truth, World, constant, crossing
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.hits import KeptHits
from carft_sweep.tracking.comparison.runs import group
from carft_sweep.tracking.comparison.spec import Endpoint
from carft_sweep.tracking.comparison.statistics import ALPHA, Estimate
from carft_sweep.tracking.comparison.verdict import DIFFERENT, judge
from tests.tracking.made_up import arm

TIMES, N = 10_000, len(rates.SEEDS)
MARGIN = Endpoint().id_margin
MOST = int(stats.binom.ppf(0.99, TIMES, 0.05))
MOST_ONE_SIDED = int(stats.binom.ppf(0.999, TIMES, 0.025))
Numbers = NDArray[np.float64]
Claims = NDArray[np.bool_]


def called(ood: Numbers, id_test: Numbers | None = None) -> tuple[Claims, Claims]:
    """[T, K] each: whether differences [T, K, n] are called any, and better; without those of ID it
    is kept for certain."""
    up = _p_above(ood, 0.0)
    id_kept = np.zeros_like(up) if id_test is None else _p_above(id_test, -MARGIN)
    different = _holm(2 * np.minimum(up, 1 - up)) < ALPHA
    return different, _holm(np.minimum(1, 2 * np.maximum(up, id_kept))) < ALPHA


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


def seeds(rng: np.random.Generator, *shape: int) -> Numbers:
    """OOD accuracies of equal methods: a part that seeds share (the split), and their own luck."""
    shared = 0.01 * rng.normal(size=(shape[0], 1, N))
    return 0.4 + shared + 0.01 * rng.normal(size=(*shape, N))


@pytest.mark.parametrize(
    ("draw", "centre"),
    [
        (lambda rng: rng.normal(0.6, 0.01, N), 0.6),
        (lambda rng: rng.binomial(2_000, rng.beta(180, 120, N)) / 2_000, 0.6),
        (lambda rng: 0.6 + 0.01 * rng.gamma(8.0, size=N), 0.68),
        (lambda rng: 0.01 * (rng.exponential(size=N) - rng.exponential(size=N)), 0.0),
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
    outcomes = []
    for own_ids, own_oods in zip(ids.tolist(), oods.tolist(), strict=True):
        both = enumerate(zip(own_ids, own_oods, strict=True))
        base, *rivals = (group(arm(f"a_{k}", *own, trial=k))[0] for k, own in both)
        judged = judge(rivals, base, Endpoint(), KeptHits())
        outcomes.append([verdict.outcome for verdict in judged])
    different, better = called(oods[:, 1:] - oods[:, :1], ids[:, 1:] - ids[:, :1])
    assert np.array_equal(np.isin(outcomes, [*DIFFERENT]), different)
    assert np.array_equal(np.array(outcomes) == "better", better)
    assert 0 < np.sum(better) < np.sum(different) < 180


@pytest.mark.parametrize("rivals", [1, 3, 6, 10, 20])
def test_equal_methods_are_seldom_called_different_and_losers_seldom_better(rivals: int) -> None:
    rng = np.random.default_rng(60 + rivals)
    oods, ids = seeds(rng, TIMES, rivals + 1), seeds(rng, TIMES, rivals + 1)
    different, _ = called(oods[:, 1:] - oods[:, :1])
    assert 0 < different.any(axis=-1).sum() <= MOST
    oods[:, 1:] += 0.05
    ids[:, 1:] -= MARGIN
    _, better = called(oods[:, 1:] - oods[:, :1], ids[:, 1:] - ids[:, :1])
    assert 0 < better.any(axis=-1).sum() <= MOST_ONE_SIDED


HIGHER = Method("rival", ood=constant(0.01))
LOSES_THE_MARGIN = Method("rival", id=-MARGIN, ood=constant(rates.LARGE))
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
    [row for row in rates.rows() if any(fnmatch(row.name, pattern) for pattern in TRIED)],
    ids=lambda row: row.name,
)
def test_what_the_page_promises_holds_through_the_whole_of_compare(row: Row) -> None:
    draws = DRAWS_WITH_IMAGES if row.keeps else DRAWS
    for claim, count in row.count(draws).items():
        nominal = row.claims[claim]
        assert nominal is not None
        assert count <= stats.binom.ppf(0.999, draws, nominal)


def test_the_counts_that_are_kept_make_the_table_and_a_rate_is_counted_until_it_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["error_rates", "--draws", "0"])
    rates.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    counts, every = json.loads(rates.COUNTS.read_text()), [*rates.rows()]
    assert len(lines) == sum(len(row.claims) for row in every if row.name in counts) > 100
    for row in every:
        own = counts.get(row.name, {})
        for claim, rate in row.claims.items():
            if rate is not None:
                assert own[claim] <= stats.binom.ppf(0.999, own["draws"], rate), row.name
    # Each pattern is of a row, and each row has a name of its own.
    names = [row.name for row in every]
    assert len(names) == len({*names})
    assert all(any(fnmatch(name, pattern) for name in names) for pattern in TRIED)
    equal = next(row for row in rates.rows() if row.world.startswith("curve: the same"))
    power = next(row for row in rates.rows() if row.world.startswith("power"))
    never = {"draws": 1000, "better curve": 0, "worse curve": 0}
    assert equal.is_counted(never, 10_000)
    assert not equal.is_counted({**never, "worse curve": 20}, 10_000)
    assert not power.is_counted(never, 10_000)
    assert power.is_counted({**never, "draws": 2000}, 10_000)


def drawn(
    draws: int, draw: Callable[[World], Sequence[Comparison]], truth: Truth, alphas: int = 0
) -> list[Sequence[Comparison]]:
    """The comparisons of so many worlds of this truth, by what is compared in each."""
    rng = np.random.default_rng(draws)
    worlds = (World(rng, truth, alphas=alphas) for _ in range(draws))
    return [*zip(*map(draw, worlds), strict=True)]


def share(comparisons: Sequence[Comparison], claim: Claim) -> float:
    """In how many of them something is claimed."""
    return sum(rates.claims(comparison, claim) for comparison in comparisons) / len(comparisons)


def test_without_images_more_is_claimed_of_the_population_than_is_promised() -> None:
    def both(world: World) -> list[Comparison]:
        methods = Method("fine_tune"), Method("rival")
        runs = [world.run(method, seed) for method in methods for seed in rates.SEEDS]
        return [world.compare(runs, keeps=keeps) for keeps in (False, True)]

    without, allowed = drawn(100, both, "population")
    assert share(without, "different") > 0.12
    assert share(allowed, "different") < 0.10
    on_these, _ = drawn(100, both, "these images")
    assert share(on_these, "different") < 0.12


@pytest.mark.parametrize("alphas", [5, 9])
def test_a_curve_that_is_a_point_higher_is_mostly_called_better(alphas: int) -> None:
    def three(world: World) -> list[Comparison]:
        methods = (Method("fine_tune"), HIGHER, Method("lower", ood=constant(-0.01)))
        start = world.zero_shot()
        base, *rivals = ([world.run(method, seed) for seed in rates.SEEDS] for method in methods)
        return [world.compare([start, *base, *runs], keeps=False) for runs in rivals]

    higher, lower = drawn(30, three, "these images", alphas)
    assert share(higher, "better curve") > 0.8
    assert share(lower, "worse curve") > 0.8


@cache
def means(method: Method) -> Numbers:
    """[2, A] ID and OOD of its models over many seeds, in a world that is the same for each."""
    world = World(np.random.default_rng(1), "these images", alphas=5)
    runs = [world.run(method, seed) for seed in range(400)]
    of_labels = [[run.metrics_of(label) for run in runs] for label in (*runs[0].merges, None)]
    names = ("id/test/top1", "ood/mean/top1")
    return np.array([[np.mean([model[n] for model in own]) for own in of_labels] for n in names])


@pytest.mark.parametrize(
    "method",
    [Method("rival", reach=0.6), Method("rival", ood=crossing(0.02)), HIGHER, LOSES_THE_MARGIN],
    ids=["shorter", "crossing", "gain", "margin"],
)
def test_these_images_have_the_wanted_truth_over_all_seeds(method: Method) -> None:
    (ids, oods), (base_ids, base_oods) = means(method), means(Method("base", reach=method.reach))
    world = World(np.random.default_rng(1), "these images", alphas=5)
    start = world.zero_shot().metrics["id/test/top1"]
    expected = method.ood((base_ids - start) / (base_ids[-1] - start))
    assert ids - base_ids == pytest.approx(np.full(4, method.id), abs=0.0015)
    assert oods - base_oods == pytest.approx(expected, abs=0.001)
