"""Numbers beside points: on which side each stands, and which are left out for want of room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_WIDTHS, _HEIGHT = (200, 500, 850), 350
"""Pixels that the points of a chart span: on a phone, in a figure and on a desk."""


@dataclass(frozen=True)
class Box:
    """What a symbol or a number covers."""

    x: float
    y: float
    """The point that it belongs to: 0 to 1 from the lowest to the highest of the chart."""
    dx: float
    dy: float
    """Pixels from there to its middle; to the right and up."""
    wide: float
    high: float
    """Half its sides in pixels."""

    def meets(self, other: Box) -> bool:
        """Whether the two overlap at some width."""
        apart = abs((self.y - other.y) * _HEIGHT + self.dy - other.dy)
        return apart < self.high + other.high and any(
            abs((self.x - other.x) * width + self.dx - other.dx) < self.wide + other.wide
            for width in _WIDTHS
        )


@dataclass(frozen=True)
class Label:
    """A short number at a point, above it to the right or below it to the left."""

    DX, DY = 7, 10
    """Pixels from the point to the near end of the number, and to its middle."""

    text: str
    x: float
    y: float
    above: bool

    @property
    def box(self) -> Box:
        """Of its letters, ten pixels high."""
        sign, half = (1 if self.above else -1), 3 * len(self.text)
        return Box(self.x, self.y, sign * (self.DX + half), sign * self.DY, half, 6)

    @property
    def point(self) -> Box:
        """Of a small symbol."""
        return Box(self.x, self.y, 0, 0, 5, 5)


@dataclass(frozen=True)
class Frame:
    """The values that the points of a chart span."""

    left: float
    right: float
    low: float
    high: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of it, 0 to 1 both ways."""
        wide, high = self.right - self.left or 1.0, self.high - self.low or 1.0
        return (x - self.left) / wide, (y - self.low) / high


def sides(wanted: Sequence[Label], taken: Iterable[Box]) -> list[bool | None]:
    """Whether each stands above, if need be on the other side than it would; None: no room.

    Room is what neither `taken` nor earlier numbers cover. Of equal numbers at points that
    coincide the first stands for both.
    """
    found: list[bool | None] = []
    stand: list[Label] = []
    full = list(taken)
    for label in wanted:
        told = any(label.text == one.text and label.point.meets(one.point) for one in stand)
        both = () if told else (label, replace(label, above=not label.above))
        free = (side for side in both if not any(side.box.meets(box) for box in full))
        chosen = next(free, None)
        found.append(None if chosen is None else chosen.above)
        if chosen is not None:
            stand.append(chosen)
            full.append(chosen.box)
    return found
