"""A split whose images are pixels in memory, as the CIFARs come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from carft_core.data.base import Split, Transform
from carft_core.data.photo_views import photo_views


class ArraySplit(Split):
    """Images [N, H, W, 3] uint8 RGB; each is its own unit."""

    def __init__(self, ids: Sequence[str], labels: Tensor, pixels: NDArray[np.uint8]) -> None:
        self.labels, self._pixels = labels, pixels
        self.ids = self.units = tuple(ids)

    def views(
        self, indices: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Views as of image files."""
        return photo_views(self._image, indices, transform=transform, seed=seed, epoch=epoch)

    def _image(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])
