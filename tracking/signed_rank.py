"""Wilcoxon's signed-rank test, exact for any number of pairs, with zeros and equal ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
