"""What difference a comparison would find, and how many seeds a margin needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from carft_sweep.tracking.comparison.statistics import ImageError, PairedTest, standard_error

POWER = 0.8
"""The share of cases in which a difference is to be found."""
MOST_SEEDS = 200
"""Nobody trains more."""


@dataclass(frozen=True)
class Power:
    """The errors of a paired difference, from which its power follows for any number of seeds."""

    of_seeds: float
    """Standard deviation over seeds of the paired differences."""
    images: ImageError | None
    """What more seeds do not reduce; None: only these test images count."""
    level: float = 0.95
    """That of the two-sided test."""

    @classmethod
    def of(cls, test: PairedTest, level: float = 0.95) -> Power | None:
        """Take the errors of measured differences; None where they are too few or do not spread."""
        if test.ci95 is None:
            return None
        n = len(test.differences)
        return cls(standard_error(test.differences) * math.sqrt(n), test.images, level)

    def smallest_difference(self, seeds: int) -> float:
        """Return the smallest true difference that so many seeds find in 80 % of cases.

        By the noncentral t distribution: Cohen, Statistical Power Analysis (1988), chapter 2.
        """
        from scipy.special import nctdtrinc, stdtrit

        of_seeds = self.of_seeds**2 / seeds
        of_images = 0.0 if self.images is None else self.images.variance
        both = of_seeds**2 / (seeds - 1)
        both += 0.0 if self.images is None else of_images**2 / self.images.freedom
        freedom = (of_seeds + of_images) ** 2 / both
        critical = stdtrit(freedom, (1 + self.level) / 2)
        return float(nctdtrinc(freedom, 1 - POWER, critical)) * math.sqrt(of_seeds + of_images)

    def seeds_for(self, difference: float, first: int) -> int | None:
        """Return how many seeds, `first` or more, find a difference in 80 % of cases; None where
        `MOST_SEEDS` do not: then the test images are too few."""
        if self.smallest_difference(MOST_SEEDS) > difference:
            return None
        low, high = first, MOST_SEEDS
        while low < high:
            middle = (low + high) // 2
            if self.smallest_difference(middle) <= difference:
                high = middle
            else:
                low = middle + 1
        return low
