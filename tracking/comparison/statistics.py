"""Estimates, paired tests, Holm's correction, the bootstrap over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEWEST_SEEDS = 3
"""Below it a standard deviation says nothing: no interval and no t test."""
RESAMPLES = 2_000
DIGITS = 12
_ROUNDING = 10.0**-DIGITS
"""Fractions that are equal to `DIGITS`, or closer than this, differ by float rounding only."""


class Interval(NamedTuple):
    """Both ends, in the unit of the values."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Differences of two arms in one metric, seed by seed, with the paired t test."""

    differences: tuple[float, ...]
    step: float = 0.0
    """What one image changes: differences that spread by no more show nothing of their spread."""

    @cached_property
    def mean(self) -> float:
        """The mean difference."""
        return mean(self.differences)

    @cached_property
    def spreads(self) -> bool:
        """Whether the differences spread over seeds by more than one image."""
        return max(self.differences) - min(self.differences) > self.step + _ROUNDING

    @cached_property
    def ci95(self) -> Interval | None:
        """Student's interval of the mean; None below 3 pairs and without spread."""
        return t_interval(self.differences) if self.spreads else None

    def interval(self, level: float) -> Interval | None:
        """Return Student's interval at another level; None where `ci95` is."""
        return t_interval(self.differences, level) if self.spreads else None

    @property
    def p(self) -> float | None:
        """Two-sided p of the paired t test; None below 3 pairs and without spread."""
        t = self._t(0.0)
        return None if t is None else 2 * _student(len(self.differences) - 1, -abs(t))

    def p_above(self, bound: float) -> float | None:
        """Return the one-sided p of the null that the mean is at most `bound`; None where p is."""
        t = self._t(bound)
        return None if t is None else _student(len(self.differences) - 1, -t)

    def _t(self, bound: float) -> float | None:
        if len(self.differences) < FEWEST_SEEDS or not self.spreads:
            return None
        return (self.mean - bound) / standard_error(self.differences)

    @property
    def is_tie(self) -> bool:
        """Whether both have the same value in every pair, but for float rounding."""
        return max(map(abs, self.differences)) < _ROUNDING


# scipy.special, not scipy.stats: the same t distribution, a tenth of the import time. Where there
# are too few seeds for an interval, not even that.


def _student(freedom: int, t: float) -> float:
    """Evaluate the distribution function of Student's t."""
    from scipy.special import stdtr

    return float(stdtr(freedom, t))


@cache
def _student_quantile(freedom: int, share: float) -> float:
    """Evaluate its inverse: a comparison needs the same few of them for each row and metric."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


@dataclass(frozen=True)
class Estimate:
    """A metric over seeds: the value of each, their mean and its interval."""

    values: tuple[float | None, ...]
    mean: float | None
    """None unless every seed has a finite value: a mean over the lucky ones would mislead."""
    ci95: Interval | None

    @property
    def half_width(self) -> float | None:
        """Half of the interval: what stands behind the ± in a table."""
        return None if self.ci95 is None else (self.ci95.high - self.ci95.low) / 2


def estimate(values: Sequence[float | None]) -> Estimate:
    """Estimate a mean; there is none where a value is missing or not finite."""
    if len(values) == 1:  # as most of a sweep of thousands of trials have it
        return _estimate_one(values[0])
    finite = tuple(v if v is not None and math.isfinite(v) else None for v in values)
    measured = [value for value in finite if value is not None]
    if not measured or len(measured) < len(finite):
        return Estimate(finite, None, None)
    return Estimate(finite, mean(measured), t_interval(measured))


def _estimate_one(value: float | None) -> Estimate:
    """Estimate the mean of one value, which has no interval."""
    if value is None or not math.isfinite(value):
        return Estimate((None,), None, None)
    return Estimate((value,), float(value), None)


def mean(values: Sequence[float]) -> float:
    """Average values, independent of the order of the values."""
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Divide the standard deviation (n - 1) by the root of n; 0 if values differ by rounding."""
    middle = mean(values)
    deviations = [value - middle for value in values]
    if max(map(abs, deviations)) < _ROUNDING:
        return 0.0
    variance = math.fsum(d * d for d in deviations) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Compute Student's two-sided interval of a mean, of 95 % unless another level is given.

    It is mean ± t(n-1) * s / sqrt(n).

    None below 3 values, or when one of them is not finite.
    """
    if len(values) < FEWEST_SEEDS or not all(map(math.isfinite, values)):
        return None
    half = _student_quantile(len(values) - 1, (1 + level) / 2) * standard_error(values)
    middle = mean(values)
    return Interval(middle - half, middle + half)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust by Holm's step-down rule, in the order given; valid whatever the dependence.

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
    """Draw means of each split [R, S]: whole units are drawn again with replacement.

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


def percentile_interval(draws: NDArray[np.float64]) -> Interval:
    """Take the middle 95 % of bootstrap draws [R]."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(low), float(high))
