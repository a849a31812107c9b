"""Drawing points of a search space, and how Optuna stores them."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, assert_never

from carft_core.errors import Route
from sweeps.space.distributions import (
    Choice,
    Dimension,
    FloatRange,
    IntRange,
    Law,
    Params,
    StepRange,
    assigned,
)

if TYPE_CHECKING:
    pass


TAIL = 0.001
"""What is cut from each end of a law that has tails: so the ends of all its draws are known, and
are checked, before the sweep begins."""
SOBOL_BITS = 30


def quantile(dimension: Dimension, u: float) -> Any:
    """The value below which the share `u` (0 to 1) of a dimension's draws lies."""
    match dimension:
        case Choice():
            return _choice(dimension, u)
        case IntRange():
            return dimension.low + dimension.step * _index(dimension.count, u)
        case StepRange():
            return dimension.at(_index(dimension.count, u))
        case FloatRange():
            return _between(dimension.low, dimension.high, u, log=dimension.log)
        case Law():
            return rounded(_of_law(dimension, u), dimension.q)
        case _:
            assert_never(dimension)


def ends(law: Law) -> tuple[int | float, int | float]:
    """The least and the greatest number that a law gives."""
    return quantile(law, 0.0), quantile(law, 1.0)


def probes(dimension: Dimension) -> list[tuple[Route, Any]]:
    """The values whose validity decides on the whole dimension, each with its place in it."""
    if isinstance(dimension, Choice):
        return [(("values", index), value) for index, value in enumerate(dimension.values)]
    if isinstance(dimension, Law):
        return [(("distribution",), end) for end in ends(dimension)]
    return [(("min",), dimension.low), (("max",), dimension.high)]


def drawn(
    dimensions: Sequence[Dimension],
    number: Callable[[str], float],
    given: Mapping[str, Any],
) -> Params:
    """A point with what is `given`, and else the quantile at the `number` of each parameter."""
    return assigned(
        dimensions,
        lambda dimension: (
            given[dimension.name]
            if dimension.name in given
            else quantile(dimension, number(dimension.name))
        ),
    )


def hashed(seed: int, point: int, name: str) -> float:
    """A number in (0, 1) for each parameter of each point: the same on every machine.

    It depends on no other parameter, so that one more changes nothing for the others.
    """
    digest = hashlib.sha256(f"{seed}:{point}:{name}".encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / (1 << 52)


def sobol(seed: int, point: int, names: Sequence[str]) -> dict[str, float]:
    """The element `point` of a Sobol sequence, scrambled with the seed: a number for each name."""
    from scipy.stats.qmc import Sobol

    sequence = Sobol(len(names), scramble=True, bits=SOBOL_BITS, seed=seed)
    if point:  # scipy cannot go forward by nothing
        sequence.fast_forward(point)
    return dict(zip(names, map(float, sequence.random(1)[0]), strict=True))


def rounded(value: float, q: int | float | None) -> int | float:
    """W&B's `round(X / q) * q`, in decimal; an integer where `q` is one."""
    if q is None:
        return value
    steps = round(value / q)
    return steps * q if isinstance(q, int) else float(steps * Decimal(repr(q)))


def _choice(choice: Choice, u: float) -> Any:
    if choice.probabilities is None:
        return choice.values[_index(len(choice.values), u)]
    sums = list(itertools.accumulate(choice.probabilities))
    possible = bisect.bisect_left(sums, sums[-1])
    return choice.values[min(bisect.bisect_right(sums, u * sums[-1]), possible)]


def _index(count: int, u: float) -> int:
    return min(int(u * count), count - 1)


def _between(low: float, high: float, u: float, *, log: bool) -> float:
    if log:
        start, end = math.log(low), math.log(high)
        value = math.exp(start + u * (end - start))
    else:
        value = low + u * (high - low)
    return min(max(value, low), high)


def _of_law(law: Law, u: float) -> float:
    first, second = law.numbers
    if law.shape == "log_uniform_values":
        return _between(first, second, u, log=True)
    share = TAIL + (1 - 2 * TAIL) * u
    if law.shape == "beta":
        from scipy.special import betaincinv

        return float(betaincinv(first, second, share))
    value = first + second * NormalDist().inv_cdf(share)
    return math.exp(value) if law.shape == "log_normal" else value
