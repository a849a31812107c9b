"""A part of a split: some of its items, which look as they do in the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from carft_core.data.base import Split, Transform


class Subset(Split):
    """A split restricted to some of its items, in the given order.

    A view stays that of the item in the whole split, so an image looks the same whatever part of
    the data trains.
    """

    def __init__(self, whole: Split, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, tuple(indices)
        self.ids = tuple(whole.ids[index] for index in self.indices)
        self.units = tuple(whole.units[index] for index in self.indices)
        self.labels = whole.labels[torch.tensor(self.indices, dtype=torch.int64)]
        self.classes, self.alike = whole.classes, whole.alike
        groups = whole.groups
        self.groups = None if groups is None else tuple(groups[index] for index in self.indices)

    def views(
        self, indices: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Those of the whole split."""
        inside = [self.indices[index] for index in indices]
        return self.whole.views(inside, transform=transform, seed=seed, epoch=epoch)


def whole_of(split: Split) -> Split:
    """What it is a part of, at last; itself where it is a whole."""
    while isinstance(split, Subset):
        split = split.whole
    return split
