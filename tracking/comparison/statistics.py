"""Estimates, paired tests, Holm's correction, the bootstrap over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# scipy.special, not scipy.stats: the same t distribution, a tenth of the import time.
from scipy.special import stdtr, stdtrit

_DECIMALS = 12
"""Differences that agree so far are equal: the rest is float rounding."""


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of the signed ranks: under no effect each rank has either sign.

    Zeros are left out (Wilcoxon's own rule, scipy's `zero_method="wilcox"`), equal sizes share the
    mean of their ranks, and p is counted over all 2^n signs of those ranks: twice the smaller
    tail, at most 1. 1 when every difference is zero. F. Wilcoxon, Individual comparisons by ranking
    methods, Biometrics Bulletin 1 (1945).
    """
    rounded = np.round(np.asarray(differences, dtype=np.float64), _DECIMALS)
    kept = rounded[rounded != 0.0]
    _, place, counts = np.unique(np.abs(kept), return_inverse=True, return_counts=True)
    # Twice the mean rank is whole: ranks from end - count + 1 up to end.
    doubled = (2 * np.cumsum(counts) - counts + 1)[place.reshape(-1)]
    total, positive = int(doubled.sum()), int(doubled[kept > 0].sum())
    chances = np.zeros(total + 1)
    chances[0] = 1.0
    for rank in doubled:
        chances /= 2
        chances[rank:] += chances[: total + 1 - rank].copy()
    return min(1.0, 2 * float(chances[: min(positive, total - positive) + 1].sum()))


FEWEST_SEEDS = 3
"""Below it a standard deviation says nothing: no interval and no t test."""
FEWEST_RANKED = 6
"""Below it a signed-rank test cannot reach 0.05: with 5 pairs its smallest p is 0.0625."""
EXACT_SIGN_FLIPS = 16
"""Up to so many pairs all 2^n sign patterns are counted; beyond, a seeded sample of them."""
SAMPLED_SIGN_FLIPS = 99_999
RESAMPLES = 2_000
_ROUNDING = 1e-12
"""Fractions closer than this differ by float rounding only."""


class Interval(NamedTuple):
    """Both ends, in the unit of the values."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """What two arms differ by, seed by seed; `p` is of the paired t test, two-sided."""

    differences: tuple[float, ...]
    mean: float
    ci95: Interval | None
    p: float | None
    p_sign_flip: float
    p_signed_rank: float | None = None
    """Of Wilcoxon's test; None below 6 pairs."""

    @property
    def n(self) -> int:
        """How many pairs."""
        return len(self.differences)

    @property
    def is_tie(self) -> bool:
        """Whether both have the same value in every pair, but for float rounding."""
        return max(map(abs, self.differences)) < _ROUNDING

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON."""
        return {
            "mean": self.mean,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "values": list(self.differences),
            "p": self.p,
            "p_sign_flip": self.p_sign_flip,
            "p_signed_rank": self.p_signed_rank,
        }


@dataclass(frozen=True)
class Summary:
    """One number over seeds: every value in the order of the seeds, their mean and its interval."""

    values: tuple[float | None, ...]
    mean: float | None
    """None unless every seed has a finite value: a mean over the lucky ones would mislead."""
    ci95: Interval | None

    @property
    def half_width(self) -> float | None:
        """What stands behind +- in a table."""
        return None if self.ci95 is None else (self.ci95.high - self.ci95.low) / 2

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON: no number there is infinite or NaN."""
        return {
            "mean": self.mean,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "values": list(self.values),
        }


def summary(values: Sequence[float | None]) -> Summary:
    """Values that are missing or not finite are None, and then there is no mean."""
    plain = tuple(v if v is not None and math.isfinite(v) else None for v in values)
    finite = [value for value in plain if value is not None]
    if not finite or len(finite) < len(plain):
        return Summary(plain, None, None)
    return Summary(plain, mean(finite), t_interval(finite))


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean, independent of the order of the values."""
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) over the root of n; 0 where the values differ by rounding only."""
    middle = mean(values)
    deviations = [value - middle for value in values]
    if max(map(abs, deviations)) < _ROUNDING:
        return 0.0
    variance = math.fsum(d * d for d in deviations) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student's two-sided interval for the mean: mean +- t(n-1) * s / sqrt(n).

    None below 3 values, or when one of them is not finite.
    """
    if len(values) < FEWEST_SEEDS or not all(map(math.isfinite, values)):
        return None
    half = _quantile(len(values), (1 + confidence) / 2) * standard_error(values)
    middle = mean(values)
    return Interval(middle - half, middle + half)


def lower_bound(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """The one-sided lower bound for the mean: mean - t(n-1) * s / sqrt(n); None below 3 values."""
    if len(values) < FEWEST_SEEDS or not all(map(math.isfinite, values)):
        return None
    return mean(values) - _quantile(len(values), confidence) * standard_error(values)


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """`first - second`, pair by pair, with the paired t, the sign-flip and the signed-rank test.

    The t test is None below 3 pairs, the signed-rank test below 6. Where all differences are equal
    and not zero the t statistic is infinite, which is no evidence about spread: the sign-flip p
    stands in.
    Raises ValueError unless both have the same length, at least 1.
    """
    differences = tuple(a - b for a, b in zip(first, second, strict=True))
    if not differences:
        raise ValueError("a paired comparison needs at least one pair")
    p_sign_flip = sign_flip_p(differences)
    return Paired(
        differences=differences,
        mean=mean(differences),
        ci95=t_interval(differences),
        p=_paired_t(differences, p_sign_flip),
        p_sign_flip=p_sign_flip,
        p_signed_rank=signed_rank_p(differences) if len(differences) >= FEWEST_RANKED else None,
    )


def _paired_t(differences: Sequence[float], p_sign_flip: float) -> float | None:
    if len(differences) < FEWEST_SEEDS:
        return None
    error = standard_error(differences)
    if error == 0.0:
        return p_sign_flip
    t = abs(mean(differences)) / error
    return min(1.0, 2 * float(stdtr(len(differences) - 1, -t)))


def sign_flip_p(differences: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided permutation p of the mean: under no effect each difference may change its sign.

    Exact up to 16 differences: the share of the 2^n sign patterns whose absolute sum reaches the
    observed one, so never below 2 / 2^n. Beyond, (1 + hits) / (1 + 99,999) over seeded patterns
    (Phipson and Smyth 2010). Fisher, The Design of Experiments, 1935, section 21.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n <= EXACT_SIGN_FLIPS:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        extra = 0
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (SAMPLED_SIGN_FLIPS, n))
        extra = 1
    sums = np.abs((1 - 2 * bits) @ values)
    hits = int(np.sum(sums >= abs(values.sum()) - _ROUNDING)) + extra
    return hits / (len(bits) + extra)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjustment, in the order given; valid whatever the dependence.

    p_adj(i) = max over j <= i of min(1, (m - j + 1) p(j)) in ascending order of p. Holm, A simple
    sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    m = len(p_values)
    adjusted = [0.0] * m
    highest = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


def cluster_bootstrap(
    totals: NDArray[np.float64],
    counts: NDArray[np.int64],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Means of each split [R, S] when whole units are drawn again with replacement.

    `totals` [U, S] is the sum of a value over a unit's items in a split, `counts` [U, S] how many
    items those are; for a paired bootstrap the value is a difference per item. Units are drawn
    among those that occur in the same splits: shared units move the splits together, and a split
    keeps its number of units. Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 8.
    """
    rng = np.random.default_rng(seed)
    units, splits = counts.shape
    sizes = counts.astype(np.float64)  # Whole numbers would miss the fast matrix product.
    _, stratum = np.unique(counts > 0, axis=0, return_inverse=True)
    members = [np.flatnonzero(stratum.reshape(-1) == s) for s in range(int(stratum.max()) + 1)]
    draws = np.empty((resamples, splits))
    chunk = max(1, 4_000_000 // units)  # Keeps the weights below 32 MB.
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        weights = np.empty((rows, units))
        for group in members:
            drawn = rng.integers(0, len(group), (rows, len(group)))
            cells = drawn + len(group) * np.arange(rows)[:, None]
            counted = np.bincount(cells.reshape(-1), minlength=rows * len(group))
            weights[:, group] = counted.reshape(rows, len(group))
        draws[start : start + rows] = (weights @ totals) / (weights @ sizes)
    return draws


def percentile_interval(draws: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """The middle `confidence` of bootstrap draws [R]."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _quantile(n: int, probability: float) -> float:
    return float(stdtrit(n - 1, probability))
