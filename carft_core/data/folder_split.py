"""A split whose images are files below one folder, decoded when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from carft_core.data.base import Split, Transform
from carft_core.data.photo_views import photo_views


class FolderSplit(Split):
    """Image files; each image is its own unit, unless more is known."""

    def __init__(
        self,
        root: Path,
        ids: Sequence[str],
        labels: Tensor,
        classes: tuple[int, ...] | None,
        *,
        read: Callable[[Path], Image.Image],
        prefix: str = "",
        alike: Mapping[int, tuple[int, ...]] | None = None,
        units: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        """`ids` are the files' paths below `root`, behind `prefix`.

        `read` makes a picture of a file and is a function of a module, for workers. It raises
        RequestError naming a file that is broken.
        """
        self.root, self.labels, self.classes = root, labels, classes
        self.ids = tuple(ids)
        self.units = self.ids if units is None else tuple(units)
        self.groups = None if groups is None else tuple(groups)
        self.alike = alike or {}
        self._read, self._prefix = read, prefix

    def views(
        self, indices: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Views as the base class says. Raises RequestError naming a file that is broken."""
        return photo_views(self._image, indices, transform=transform, seed=seed, epoch=epoch)

    def _image(self, index: int) -> Image.Image:
        return self._read(self.root / self.ids[index].removeprefix(self._prefix))
