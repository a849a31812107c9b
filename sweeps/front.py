"""The Pareto front of a sweep with several goals: the trials that no other one beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Values = Sequence[float]


def front(values: Mapping[int, Values], maximized: Sequence[bool]) -> set[int]:
    """The trials (by number) on the front, equal ones with each other.

    One trial beats another when it is as good by every goal and better by one. `maximized` says
    of each goal whether more is better.
    """
    import numpy as np

    if not values:
        return set()
    numbers = np.array(list(values))
    turned = np.array([list(found) for found in values.values()], dtype=np.float64)
    turned *= np.where(maximized, 1.0, -1.0)
    # The best by the first goal, then by the second and so on: whoever beats a trial comes before
    # it, and so does one on the front.
    order = np.lexsort(-turned.T[::-1])
    kept: list[int] = []
    best = np.empty_like(turned)
    for index in order:
        ahead = best[: len(kept)]
        own = turned[index]
        if not np.any(np.all(ahead >= own, axis=1) & np.any(ahead > own, axis=1)):
            best[len(kept)] = own
            kept.append(int(numbers[index]))
    return set(kept)
