"""What torchvision's data sets know of their images, before any is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pair = tuple[str | Path, str]
"""A file, and its class's name in the data set."""


def opened(dataset: str, root: Path, arguments: Mapping[str, object]) -> Any:
    """A data set of `torchvision.datasets` below `root`, of which nothing is downloaded.

    Raises whatever torchvision does for what is missing, damaged or another layout.
    """
    from torchvision import datasets

    return getattr(datasets, dataset)(str(root), **arguments)


def file_classes(dataset: Any, root: Path) -> dict[str, str]:
    """The path below `root` of each image -> its class's name in the data set.

    By attributes that torchvision's classes have had since 0.12: `__getitem__` would decode every
    image to tell its class.
    """
    pairs = _PAIRS.get(type(dataset).__name__, _listed)(dataset)
    start = f"{root}/"
    # As text: SUN397 has a hundred thousand of them.
    return {os.fspath(file).removeprefix(start): name for file, name in pairs}


def pixels_of(dataset: Any) -> tuple[NDArray[np.uint8], list[str]]:
    """Images [N, 32, 32, 3] of one of the CIFARs, and the name of each one's class."""
    return dataset.data, [dataset.classes[label] for label in dataset.targets]


def _listed(dataset: Any) -> Iterable[Pair]:
    names = (dataset.classes[label] for label in dataset._labels)
    return zip(dataset._image_files, names, strict=True)


def _flowers(dataset: Any) -> Iterable[Pair]:
    """By the numbers in `imagelabels.mat`; the data set has no names."""
    names = (str(label + 1) for label in dataset._labels)
    return zip(dataset._image_files, names, strict=True)


def _cars(dataset: Any) -> Iterable[Pair]:
    return ((file, dataset.classes[label]) for file, label in dataset._samples)


def _pets(dataset: Any) -> Iterable[Pair]:
    names = (dataset.classes[label] for label in dataset._labels)
    return zip(dataset._images, names, strict=True)


def _caltech(dataset: Any) -> Iterable[Pair]:
    for number, label in zip(dataset.index, dataset.y, strict=True):
        name = dataset.categories[label]
        yield f"{dataset.root}/101_ObjectCategories/{name}/image_{number:04d}.jpg", name


_PAIRS: Mapping[str, Callable[[Any], Iterable[Pair]]] = {
    "Caltech101": _caltech,
    "Flowers102": _flowers,
    "StanfordCars": _cars,
    "OxfordIIITPet": _pets,
}
"""The others name files and labels alike."""
