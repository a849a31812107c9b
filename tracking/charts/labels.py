"""Places of words beside the points of a chart: none hides another one or a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Align = Literal["left", "right", "center"]
FONT_SIZE = 10
_LETTER = 0.6 * FONT_SIZE
"""Pixels of a letter's width, at most, on average of a common sans serif."""
_LINE = 1.2 * FONT_SIZE
_STEP = 6.0
"""Pixels between the samples of a line."""
_TRIES = 6


class Box(NamedTuple):
    """A rectangle in pixels, from the upper left corner of the plot."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Label:
    """Words for a point of the plot."""

    text: str
    x: float
    y: float
    gap: float = 6.0
    """Pixels from the point to the words: the radius of its symbol, and some space."""
    required: bool = False
    """Whether it is drawn even where there is no room."""


class Offset(NamedTuple):
    """Where the words stand: pixels from their point to their aligned edge and to their middle."""

    dx: float
    dy: float
    align: Align

    def box(self, label: Label) -> Box:
        """Return what the words cover."""
        width = _LETTER * len(label.text)
        x, y = label.x + self.dx, label.y + self.dy
        left = {"left": x, "right": x - width, "center": x - width / 2}[self.align]
        return Box(left, y - _LINE / 2, left + width, y + _LINE / 2)


def place_labels(
    labels: Sequence[Label], points: Sequence[Box], lines: Sequence[Box], plot: Box
) -> list[Offset | None]:
    """Choose a place for each label; None for one that has no room.

    A label covers no point and no other label and stays inside the plot; of the places that are
    left it takes the first that covers the least of the lines. Labels choose in their order, and
    where one finds no room it chooses first in another try.

    Args:
        labels: Those with the same text may name different points.
        points: What symbols cover.
        lines: What lines cover, as `sample_line` returns it.
        plot: The area inside the axes.
    """
    order = list(range(len(labels)))
    best: tuple[tuple[int, int], list[Offset | None]] | None = None
    covered, crossed = _boxes(points), _boxes(lines)
    for _ in range(_TRIES):
        offsets, crowded = _place(labels, order, covered, crossed, plot)
        failed = [index for index in order if offsets[index] is None or index in crowded]
        cost = (len(crowded), len(failed))
        if best is None or cost < best[0]:
            best = cost, offsets
        if not failed:
            break
        order = [*failed, *(index for index in order if index not in failed)]
    return [] if best is None else best[1]


def _place(
    labels: Sequence[Label],
    order: Sequence[int],
    points: NDArray[np.float64],
    lines: NDArray[np.float64],
    plot: Box,
) -> tuple[list[Offset | None], set[int]]:
    """Let the labels choose in this order; also return which required ones hide something."""
    taken, inside = points, _boxes([plot])
    offsets: list[Offset | None] = [None] * len(labels)
    crowded: set[int] = set()
    for index in order:
        label, costs = labels[index], []
        for rank, offset in enumerate(_candidates(label.gap)):
            box = offset.box(label)
            area = (box.right - box.left) * (box.bottom - box.top)
            hidden = _overlap(box, taken) + area - _overlap(box, inside)
            costs.append((round(hidden, 3), _overlap(box, lines), rank, offset))
        hidden, _, _, offset = min(costs)
        if hidden and label.required:
            crowded.add(index)
        if label.required or not hidden:
            offsets[index] = offset
            taken = np.concatenate([taken, _boxes([offset.box(label)])])
    return offsets, crowded


def _boxes(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """Write boxes as an array [N, 4]."""
    return np.reshape(np.array(boxes, dtype=float), (-1, 4))


def _overlap(box: Box, others: NDArray[np.float64]) -> float:
    """Return the area of a box that others [N, 4] cover, each by itself."""
    widths = np.minimum(box.right, others[:, 2]) - np.maximum(box.left, others[:, 0])
    heights = np.minimum(box.bottom, others[:, 3]) - np.maximum(box.top, others[:, 1])
    return float((widths.clip(0) * heights.clip(0)).sum())


def sample_line(start: tuple[float, float], end: tuple[float, float]) -> Iterator[Box]:
    """Cover the line between two points with small boxes."""
    (x, y), (to_x, to_y) = start, end
    steps = max(1, round(max(abs(to_x - x), abs(to_y - y)) / _STEP))
    for step in range(steps + 1):
        yield square(x + (to_x - x) * step / steps, y + (to_y - y) * step / steps, 1.0)


def square(x: float, y: float, radius: float) -> Box:
    """Return what a symbol covers."""
    return Box(x - radius, y - radius, x + radius, y + radius)


def _candidates(gap: float) -> Iterator[Offset]:
    """Yield beside, above and below, then the corners, and the same further away."""
    for away in (gap, gap + 8.0):
        corner = 0.7 * away
        yield Offset(away, 0.0, "left")
        yield Offset(-away, 0.0, "right")
        yield Offset(0.0, -away - _LINE / 2, "center")
        yield Offset(0.0, away + _LINE / 2, "center")
        for dy in (-corner - 0.3 * _LINE, corner + 0.3 * _LINE):
            yield Offset(corner, dy, "left")
            yield Offset(-corner, dy, "right")
