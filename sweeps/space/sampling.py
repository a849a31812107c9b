"""Points drawn by random numbers and by a quasi-random sequence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweeps.space.distributions import Distribution, Params, sample_point

SOBOL_BITS = 30


def draw_point(
    space: Sequence[Distribution], number: Callable[[str], float], fixed: Mapping[str, Any]
) -> Params:
    """Draw a point: what is `fixed`, and else the quantile at the `number` of each parameter."""
    return sample_point(
        space,
        lambda item: fixed[item.name] if item.name in fixed else item.quantile(number(item.name)),
    )


def hashed(seed: int, point: int, name: str) -> float:
    """Return a number in (0, 1) for each parameter of each point: the same on every machine.

    It depends on no other parameter, so that one more changes nothing for the others.
    """
    digest = hashlib.sha256(f"{seed}:{point}:{name}".encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / (1 << 52)


def sobol(seed: int, point: int, names: Sequence[str]) -> dict[str, float]:
    """Return the element `point` of a scrambled Sobol sequence: a number for each name."""
    from scipy.stats.qmc import Sobol

    sequence = Sobol(len(names), scramble=True, bits=SOBOL_BITS, seed=seed)
    if point:  # scipy cannot go forward by nothing
        sequence.fast_forward(point)
    return dict(zip(names, map(float, sequence.random(1)[0]), strict=True))
