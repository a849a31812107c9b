"""What difference a comparison would find, and how many seeds a margin needs."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from carft_sweep.tracking.comparison.statistics import (
    ImageError,
    PairedTest,
    combined_error,
    standard_error,
)

POWER = 0.8
"""The power at which a smallest difference and a number of seeds are stated."""
MOST_SEEDS = 200
"""The largest number of seeds that is considered."""
OOD_SPREAD, ID_SPREAD = 0.005, 0.009
"""Standard deviation over seeds of paired differences of CAR-FT and fine-tuning on IconShift
(docs/verdict.md)."""
UNIT_SPREAD = 0.11
"""Standard deviation over units of test images of the same, in the mean over endless seeds."""


@dataclass(frozen=True)
class Power:
    """The errors of a paired difference, from which its power with any number of seeds follows."""

    of_seeds: float
    """Standard deviation over seeds of the paired differences."""
    images: ImageError | None
    """Error over test images, which more seeds do not reduce; None: the claim is on these alone."""
    level: float = 0.95
    """Confidence level of the two-sided test."""
    slack: float = 0.0
    """By how much the difference that is tested lies below the true one, as a bound does."""

    @classmethod
    def of(
        cls, test: PairedTest | None, level: float = 0.95, *, slack: float = 0.0
    ) -> Power | None:
        """Return the power of a measured `test`; None for too few seeds or no spread."""
        if test is None or test.ci95 is None:
            return None
        n = len(test.differences)
        return cls(standard_error(test.differences) * math.sqrt(n), test.images, level, slack)

    @classmethod
    def expected(cls, splits: Sequence[Sequence[str]], of_seeds: float) -> Power:
        """Return the power of a difference in the mean over splits, before any run. `splits` holds
        the unit of each image of each split, `of_seeds` the standard deviation over seeds. Arms are
        assumed to differ on these units as widely as CAR-FT and fine-tuning on IconShift."""
        shares: dict[str, float] = {}
        for units in splits:
            for unit in units:
                shares[unit] = shares.get(unit, 0.0) + 1 / (len(units) * len(splits))
        variance = UNIT_SPREAD**2 * math.fsum(share**2 for share in shares.values())
        images = sum(map(len, splits))
        error = ImageError(variance, max(1, len(shares) - 1), len(shares), images)
        return cls(of_seeds, error)

    def smallest_difference(self, seeds: int) -> float:
        """Return the smallest true difference that a test with `seeds` seeds shows 4 times in 5. By
        the noncentral t distribution: Cohen, Statistical Power Analysis (1988), chapter 2."""
        from scipy.special import nctdtrinc

        error, freedom, critical = self._test(seeds)
        return float(nctdtrinc(freedom, 1 - POWER, critical)) * error + self.slack

    def chance(self, difference: float, seeds: int) -> float:
        """Return the share of tests with `seeds` seeds that show a true difference `difference`."""
        from scipy.special import nctdtr

        error, freedom, critical = self._test(seeds)
        return 1 - float(nctdtr(freedom, (difference - self.slack) / error, critical))

    def _test(self, seeds: int) -> tuple[float, float, float]:
        """Return standard error, degrees of freedom and critical t of a test with `seeds` seeds."""
        from scipy.special import stdtrit

        error, freedom = combined_error(self.of_seeds**2 / seeds, seeds, self.images)
        return error, freedom, float(stdtrit(freedom, (1 + self.level) / 2))

    def seeds_for(self, difference: float, first: int) -> int | None:
        """Return how many seeds, at least `first`, show a difference in 80 % of cases; None where
        `MOST_SEEDS` do not, as the test images are too few."""
        if self.smallest_difference(MOST_SEEDS) > difference:
            return None
        counts = range(first, MOST_SEEDS)
        return first + bisect_left(counts, -difference, key=lambda n: -self.smallest_difference(n))
