"""Which classes of ImageNet-1k the folders of each of its splits and shifts are."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

LISTS = Path(__file__).with_name("imagenet_classes")
CLASSES = 1000


@functools.cache
def wnids() -> tuple[str, ...]:
    """The classes' WordNet ids; the place of each is its index, which is their order by name."""
    return tuple((LISTS / "wnids.txt").read_text().split())


@functools.cache
def labels_of(split: str) -> Mapping[str, int]:
    """Class folder -> class, of `train`, `test` or a shift; the folders that it must have.

    ObjectNet's has the class that stands for all that its folder is.
    """
    everything = {wnid: index for index, wnid in enumerate(wnids())}
    if split == "v2":
        return {str(index): index for index in range(CLASSES)}
    if split in ("r", "a"):
        return {wnid: everything[wnid] for wnid in (LISTS / f"{split}.txt").read_text().split()}
    if split == "objectnet":
        return {folder: indices[0] for folder, indices in _objectnet().items()}
    return everything


@functools.cache
def alike_in(split: str) -> Mapping[int, tuple[int, ...]]:
    """The classes that count as one, by the class that stands for them (ObjectNet's only).

    Source: wise-ft's `src/datasets/objectnet.py`, where the logit of a folder is the greatest of
    its classes'.
    """
    if split != "objectnet":
        return {}
    return {indices[0]: indices for indices in _objectnet().values()}


@functools.cache
def _objectnet() -> Mapping[str, tuple[int, ...]]:
    """Folder -> the classes that it is, in wise-ft's order."""
    lines = (line.split() for line in (LISTS / "objectnet.txt").read_text().splitlines())
    return {folder: tuple(int(index) for index in indices) for folder, *indices in lines}
