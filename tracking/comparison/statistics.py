"""Estimates, paired tests, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

ALPHA = 0.05
"""Significance level of the two-sided, Holm-adjusted test."""
SEEDS_FOR_INTERVAL = 3
"""Least number of seeds for an interval and a t test."""
DIGITS = 12
ROUNDING = 10.0**-DIGITS
"""Fractions equal to `DIGITS` decimals, or closer than this, differ by float rounding only."""


class Interval(NamedTuple):
    """The two ends of an interval, in the unit of the values."""

    low: float
    high: float


class StandardError(NamedTuple):
    """The standard error of a mean, with its degrees of freedom."""

    size: float
    freedom: float


class ImageError(NamedTuple):
    """The variance of a mean over seeds from the sampling of its test images: the part that more
    seeds do not reduce."""

    variance: float
    """The floor: what is left of the variance with endless seeds."""
    freedom: int
    """Degrees of freedom of a variance over images: units less one, or groups less one."""
    units: int
    """Number of what was sampled: images, or groups of images such as the views of one drawing."""
    images: int
    interaction: float = 0.0
    """What a single seed adds to the floor by its luck on single images. It falls with seeds, and
    is in the variance over seeds already: it counts for the degrees of freedom alone."""

    @classmethod
    def floor(
        cls,
        of_mean: float,
        of_one_seed: float,
        seeds: int,
        *,
        freedom: int,
        units: int,
        images: int,
    ) -> ImageError:
        """Return the part of a variance over images that more seeds do not reduce.

        `of_mean` is the variance over images V(n) of the mean over n `seeds`, `of_one_seed` that of
        a single seed V(1), mean over the seeds. Luck on images is r = (V(1) - V(n)) / (n - 1)
        of V(n), and the floor is V(n) - r, or 0 where that is negative. Of a single seed nothing is
        known of r, and the floor is V(1), which is too much. Seeds, images and both: Cornfield and
        Tukey, Annals of Mathematical Statistics 27 (1956); Obuchowski and Rockette, Communications
        in Statistics 24 (1995).
        """
        if seeds == 1:
            return cls(of_mean, freedom, units, images)
        luck = (of_one_seed - of_mean) / (seeds - 1)
        variance = of_mean - luck
        if variance <= ROUNDING * of_mean:
            return cls(0.0, freedom, units, images, of_one_seed)
        return cls(variance, freedom, units, images, seeds * luck)


@dataclass(frozen=True)
class PairedTest:
    """Differences of two arms in one metric, seed by seed, with the paired t test. Its variance is
    that over seeds and, where the images are known, that over test images."""

    differences: tuple[float, ...]
    step: float = 0.0
    """What one image changes: differences that spread by no more are not tested."""
    images: ImageError | None = None
    """Error over test images; None: claims are on these images alone."""

    @cached_property
    def mean(self) -> float:
        """The mean difference."""
        return mean(self.differences)

    @cached_property
    def spreads(self) -> bool:
        """Whether the differences spread over seeds by more than one image."""
        return differ(self.differences, by=self.step)

    @cached_property
    def error(self) -> StandardError:
        """The standard error of the mean, over seeds and images."""
        of_seeds = standard_error(self.differences) ** 2
        return combined_error(of_seeds, len(self.differences), self.images)

    @cached_property
    def ci95(self) -> Interval | None:
        """Student's interval of the mean; None below 3 pairs and without spread."""
        return self.interval(0.95)

    def interval(self, level: float) -> Interval | None:
        """Return Student's interval at another level; None where `ci95` is None."""
        if not self._is_tested:
            return None
        half = _student_quantile(self.error.freedom, (1 + level) / 2) * self.error.size
        return Interval(self.mean - half, self.mean + half)

    @property
    def p(self) -> float | None:
        """Two-sided p of the paired t test; None below 3 pairs and without spread."""
        return None if not self._is_tested else 2 * self._tail(-abs(self.mean))

    def p_above(self, bound: float) -> float | None:
        """Return the one-sided p of the null that the mean is at most `bound`; None without p."""
        return None if not self._is_tested else self._tail(bound - self.mean)

    def p_below(self, bound: float) -> float | None:
        """Return the one-sided p of the null that the mean is at least `bound`; None without p."""
        return None if not self._is_tested else self._tail(self.mean - bound)

    def _tail(self, distance: float) -> float:
        # scipy.special, not scipy.stats: the same t distribution, a tenth of the import time. Where
        # there are too few seeds for an interval, not even that.
        from scipy.special import stdtr

        return float(stdtr(self.error.freedom, distance / self.error.size))

    @property
    def _is_tested(self) -> bool:
        return len(self.differences) >= SEEDS_FOR_INTERVAL and self.spreads

    @property
    def is_tie(self) -> bool:
        """Whether both arms have the same value in every pair, but for float rounding."""
        return max(map(abs, self.differences)) < ROUNDING


@lru_cache(4096)
def _student_quantile(freedom: float, share: float) -> float:
    """Return the quantile of Student's t with `freedom` degrees of freedom at the lower-tail
    probability `share`; cached, since few pairs of both recur."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


@dataclass(frozen=True)
class Estimate:
    """A metric over seeds: the value of each, their mean and its interval."""

    values: tuple[float | None, ...]
    """Finite values, one a seed; None where a seed has no value."""

    @cached_property
    def mean(self) -> float | None:
        """The mean; None unless all seeds have one: a mean over the lucky ones would mislead."""
        measured = [value for value in self.values if value is not None]
        return mean(measured) if measured and len(measured) == len(self.values) else None

    @cached_property
    def ci95(self) -> Interval | None:
        """Student's interval, mean ± t(n-1) * s / sqrt(n); None if no mean or below 3 values."""
        measured = [value for value in self.values if value is not None]
        if self.mean is None or len(measured) < SEEDS_FOR_INTERVAL:
            return None
        half = _student_quantile(len(measured) - 1, 0.975) * standard_error(measured)
        return Interval(self.mean - half, self.mean + half)

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width, which tables print after ±."""
        return None if self.ci95 is None else (self.ci95.high - self.ci95.low) / 2


def mean(values: Sequence[float]) -> float:
    """Return the mean of values, the same to the bit in whatever order they come."""
    return math.fsum(values) / len(values)


def differ(values: Sequence[float], by: float = 0.0) -> bool:
    """Return whether the largest of values exceeds the smallest by more than `by`, and by more than
    float rounding."""
    return max(values) - min(values) > by + ROUNDING


def standard_error(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1) over the root of n; 0 if values differ by rounding."""
    if not differ(values):
        return 0.0
    middle = mean(values)
    deviations = [value - middle for value in values]
    variance = math.fsum(d * d for d in deviations) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def combined_error(of_seeds: float, seeds: int, images: ImageError | None) -> StandardError:
    """Return the standard error of a mean over seeds and images, the root of s²/n plus the floor
    of the images. `of_seeds` is s²/n, the variance of the mean over its seeds.

    Degrees of freedom are Satterthwaite's, Biometrics Bulletin 2 (1946), of three variances: s²/n
    with n - 1, V(n) with units less one, and luck on single images, which is subtracted, with n - 1
    times as many (`ImageError.floor`). A floor of 0 adds nothing. They are no fewer than n - 1 or
    units less one, whichever is less.
    """
    if images is None:
        return StandardError(math.sqrt(of_seeds), seeds - 1)
    variance = of_seeds + images.variance
    spread = of_seeds**2 / (seeds - 1)
    if images.variance > 0:
        luck = images.interaction / seeds
        spread += (images.variance + luck) ** 2 / images.freedom
        spread += luck**2 / (images.freedom * (seeds - 1))
    fewest = min(seeds - 1, images.freedom)
    return StandardError(math.sqrt(variance), max(fewest, variance**2 / spread))


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return p values adjusted by Holm's step-down rule, in the order given; valid whatever the
    dependence. None (not tested) counts as 1 and stays None.

    p_adj(i) = max over j <= i of min(1, (m - j + 1) p(j)) in ascending order of p. Holm, A simple
    sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    m, highest = len(p_values), 0.0
    adjusted: list[float | None] = [None] * m
    tested = [(p, index) for index, p in enumerate(p_values) if p is not None]
    for rank, (p, index) in enumerate(sorted(tested)):
        adjusted[index] = highest = max(highest, min(1.0, (m - rank) * p))
    return tuple(adjusted)


def deciding_level(p: float | None, adjusted: float | None, compared: int) -> float:
    """Return the confidence level whose interval excludes the null exactly if the adjusted p is
    below alpha. It is 1 - alpha / k, where Holm's rule multiplied `p` by k; untested or at 1, k is
    `compared`."""
    if p is None or adjusted is None or p <= 0:
        return 1 - ALPHA / compared
    return 1 - ALPHA / (adjusted / p if adjusted < 1 else compared)
