"""One WiSE-FT curve above another one, computed place by place as docs/verdict.md defines it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]
"""ID and OOD accuracy of its models by rising alpha."""


def common_range(one: Curve, two: Curve) -> tuple[float, float]:
    """The ID accuracies that both reach; the first end is above the second where there are none."""
    xs, others = ([x for x, _ in curve] for curve in (one, two))
    return max(min(xs), min(others)), min(max(xs), max(others))


def above(
    ours: Curve, theirs: Curve, their_height: Callable[[Curve, float], float | None]
) -> float | None:
    """How much our chords lie above a height of the other curve, at 64 places of the range."""
    low, high = common_range(ours, theirs)
    if not low < high - 1e-12:
        return None
    differences = []
    for place in range(64):
        x = low + (high - low) * (2 * place + 1) / 128
        height, other = height_at(ours, x), their_height(theirs, x)
        if height is not None and other is not None:
            differences.append(height - other)
    return float(np.mean(differences)) if differences else None


def line(curve: Curve, piece: int, x: float) -> float:
    """The straight line through two measured models that follow each other, extended to `x`."""
    (x0, y0), (x1, y1) = curve[piece : piece + 2]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def pieces_at(curve: Curve, x: float) -> list[int]:
    """Those between whose ends an ID accuracy lies."""
    ends = [(one[0], two[0]) for one, two in itertools.pairwise(curve)]
    spans = [(min(pair), max(pair)) for pair in ends]
    return [k for k, (low, high) in enumerate(spans) if low <= x <= high and low < high - 1e-12]


def height_at(curve: Curve, x: float) -> float | None:
    """The highest of the chords there."""
    return max((line(curve, k, x) for k in pieces_at(curve, x)), default=None)


def most_at(curve: Curve, x: float) -> float | None:
    """The most that a curve bent upwards may have at an ID accuracy, from its measured models.

    That is the lower one of the neighbouring lines, extended, and no less than the chord. A line
    leads on to a piece where the curve does not turn back in ID between the two. A piece that no
    line leads on to is bounded by its chord where another one lies higher, and else by nothing.
    """
    goes = [np.sign(round(two[0] - one[0], 12)) for one, two in itertools.pairwise(curve)]
    highest, bounds = height_at(curve, x), []
    for k in pieces_at(curve, x):
        chord = line(curve, k, x)
        beside = [j for j in (k - 1, k + 1) if 0 <= j < len(goes) and goes[j] == goes[k]]
        if not beside and highest is not None and chord > highest - 1e-12:
            return None
        bounds.append(max(chord, min((line(curve, j, x) for j in beside), default=chord)))
    return max(bounds, default=None)
