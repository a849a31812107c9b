"""A split whose views tell what they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from carft_sweep.carft_core.data.base import Source, Split
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.errors import RequestError

TRANSFORM = Transform(size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Numbered(Source):
    """A view's pixels tell the item, the seed (255 for none) and the pass that it was made for."""

    broken: int | None = None
    calls: list[int] = field(default_factory=list)

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        self.calls.append(len(rows))
        if self.broken in rows:
            raise RequestError(f"item {self.broken} is broken")
        told = 255 if seed is None else seed % 255
        values = torch.tensor([[row, told, epoch] for row in rows]).byte()
        return values[:, :, None, None].expand(-1, -1, transform.size, transform.size)


def numbered(
    count: int, *, broken: int | None = None, groups: tuple[str, ...] | None = None
) -> Split:
    return Split(
        ids=tuple(f"item {index}" for index in range(count)),
        labels=torch.arange(count) % 3,
        source=Numbered(broken),
        groups=groups,
    )
