"""A split whose images lie in tar shards, each read from its own place when it is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from carft_core.data.base import Split, Transform
from carft_core.data.photo_views import Part, photo_views, read_rgb
from carft_core.data.shards import ShardIndex


class ShardSplit(Split):
    """Images in shards; each image is its own unit."""

    def __init__(
        self,
        root: Path,
        ids: Sequence[str],
        labels: Tensor,
        classes: tuple[int, ...] | None,
        index: ShardIndex,
    ) -> None:
        """`ids` are some or all of the index's, whose shards lie below `root`."""
        self.root, self.labels, self.classes = root, labels, classes
        self.ids = self.units = tuple(ids)
        rows = {image: row for row, image in enumerate(index.ids)}
        self.shards, self.places = index.shards, index.places[[rows[image] for image in ids]]

    def views(
        self, indices: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Views as the base class says. Raises RequestError naming an image that is broken."""
        return photo_views(self._image, indices, transform=transform, seed=seed, epoch=epoch)

    def _image(self, index: int) -> Image.Image:
        shard, offset, size = self.places[index].tolist()
        return read_rgb(self.root / self.shards[shard], Part(self.ids[index], offset, size))
