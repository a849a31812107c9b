"""One WiSE-FT curve above another one, computed place by place as docs/verdict.md defines it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

PLACES = 32
Curve = Sequence[tuple[float, float]]
"""ID and OOD accuracy of its models by rising alpha."""


def common_range(ours: Curve, theirs: Curve) -> tuple[float, float]:
    """The ID accuracies that both reach; the first end is above the second where there are none."""
    ids, their_ids = ([x for x, _ in curve] for curve in (ours, theirs))
    return max(min(ids), min(their_ids)), min(max(ids), max(their_ids))


def above(
    ours: Curve, theirs: Curve, their_height: Callable[[Curve, float], float | None]
) -> float | None:
    """How much our chords lie above a height of the other curve, at 32 places of the range."""
    low, high = common_range(ours, theirs)
    if not low < high - 1e-12:
        return None
    differences = []
    for place in range(PLACES):
        x = low + (high - low) * (2 * place + 1) / (2 * PLACES)
        height, other = height_at(ours, x), their_height(theirs, x)
        if height is not None and other is not None:
            differences.append(height - other)
    return float(np.mean(differences)) if differences else None


def line(curve: Curve, piece: int, x: float) -> float:
    """The straight line through two measured models that follow each other, extended to `x`."""
    (x0, y0), (x1, y1) = curve[piece : piece + 2]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def pieces_at(curve: Curve, x: float) -> list[int]:
    ends = [(start[0], end[0]) for start, end in itertools.pairwise(curve)]
    spans = [(k, min(pair), max(pair)) for k, pair in enumerate(ends)]
    wide = [(k, low, high) for k, low, high in spans if low < high - 1e-12]
    return [k for k, low, high in wide if low - 1e-12 <= x <= high + 1e-12]


def height_at(curve: Curve, x: float) -> float | None:
    return max((line(curve, k, x) for k in pieces_at(curve, x)), default=None)


def most_at(curve: Curve, x: float) -> float | None:
    """The most that a curve bent upwards may have at an ID accuracy, from its measured models.

    That is the lower one of the neighbouring lines, extended, and no less than the chord. A line
    leads on to a piece where the curve does not turn back in ID between the two. A piece that no
    line leads on to is bounded by its chord where another one lies higher, and else by nothing.
    """
    return _end_at(curve, x, min, max)


def least_at(curve: Curve, x: float) -> float | None:
    """The least that a curve bent downwards may have: the mirror image of the most, of the pieces
    of a curve that turns back that of the highest one."""
    return _end_at(curve, x, max, min)


def _end_at(
    curve: Curve, x: float, nearer: Callable[..., float], outer: Callable[..., float]
) -> float | None:
    steps = [round(end[0] - start[0], 12) for start, end in itertools.pairwise(curve)]
    goes = [(step > 0) - (step < 0) for step in steps]
    chords, bounds = {k: line(curve, k, x) for k in pieces_at(curve, x)}, []
    for k, chord in chords.items():
        beside = [j for j in (k - 1, k + 1) if 0 <= j < len(goes) and goes[j] == goes[k]]
        if not beside and chord > max(chords.values()) - 1e-12:
            return None
        bounds.append(outer(chord, nearer((line(curve, j, x) for j in beside), default=chord)))
    return max(bounds, default=None)


def sag(ours: Curve, theirs: Curve) -> float:
    """How far our curve may lie below its chords, over the range that both reach; of one point
    nothing."""
    if len(ours) == 1:
        return 0.0
    low, high = common_range(ours, theirs)
    falls = []
    for place in range(PLACES):
        x = low + (high - low) * (2 * place + 1) / (2 * PLACES)
        height, least = height_at(ours, x), least_at(ours, x)
        if height is not None and least is not None:
            falls.append(height - least)
    return float(np.mean(falls)) if falls else float("nan")


def gains_of(pairs: Sequence[Sequence[Curve]]) -> list[float | None]:
    """By seed, how much the least of our curve lies above the most of the other one. How far ours
    may lie below its chords is seen by the mean curve."""
    ours, theirs = (np.mean([pair[side] for pair in pairs], axis=0).tolist() for side in (0, 1))
    fall = sag(ours, theirs)
    gains = [above(own, other, most_at) for own, other in pairs]
    return [None if gain is None or np.isnan(fall) else gain - fall for gain in gains]
