"""A data set of WILDS as a family: its official splits, as its tables give them."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from carft_core.data.base import DataFolder, FamilyData, FoundSplit, Split
from carft_core.data.data_root import (
    data_root,
    find_folders,
    found_folder,
    missing_folder,
    readable,
)
from carft_core.data.folder_split import FolderSplit
from carft_core.data.folder_tree import listed
from carft_core.data.held_out import refuse_held_out
from carft_core.data.manifest import read_manifest
from carft_core.data.photo_views import read_plain
from carft_core.data.wilds_tables import Image
from carft_core.errors import RequestError

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig

ORIGIN = "https://wilds.stanford.edu/downloads"
OURS: Mapping[str, str] = {
    "train": "train",
    "id_val": "val",
    "id_test": "test",
    "test": "shifts/test",
    "val": "extras/val",
}
"""WILDS' splits as `FamilyData` has them: what WILDS calls val and test is out of distribution."""
LISTS = Path(__file__).with_name("wilds_classes")


RECIPE: Mapping[str, object] = {
    "data.augmentation": "flyp",
    "optim.epochs": 20,
    "optim.batch_size": 256,
    "optim.weight_decay": 0.2,
    "optim.warmup": 500.0,
}
"""FLYP's for WILDS."""


@dataclass(frozen=True, eq=False)
class Benchmark:
    """One data set of WILDS as published."""

    family: str
    folder: str
    """Below the data root, as WILDS' own package makes it."""
    layout: str
    images: str
    """The folder in it that has the images, all in one place."""
    counts: Mapping[str, int]
    """How many images each of WILDS' splits has."""
    read: Callable[[Path, Sequence[str]], Sequence[Image]]
    """The images that the tables of a folder name, given the names of the classes. Raises
    RequestError for a table that is not as published."""
    uneven: str = ""
    """As in `FamilyData`."""

    @property
    def whole(self) -> DataFolder:
        """Its folder with the images of all splits."""
        return DataFolder((self.folder,), self.layout, ORIGIN, sum(self.counts.values()))

    def folders(self) -> dict[str, DataFolder]:
        """For each split the same folder, with the images that the split has of it."""
        return {OURS[name]: replace(self.whole, images=n) for name, n in self.counts.items()}

    def class_names(self) -> tuple[str, ...]:
        """Those of the classes, in the order of the labels."""
        return tuple((LISTS / f"{self.family}.txt").read_text(encoding="utf-8").splitlines())


def open_benchmark(config: DataConfig, benchmark: Benchmark) -> FamilyData:
    """Open what lies in a benchmark's folder below `data.root`.

    Raises RequestError when the folder is missing, a table is not as published, or images that it
    names are missing or empty. Images are not decoded here: a broken one raises when its turn
    comes.
    """
    refuse_held_out(config, "leave the field out: its splits are official")
    wanted = {"train": benchmark.whole}
    folder = find_folders(data_root(config, wanted), wanted)["train"]
    with readable():
        return _opened(folder, benchmark)


def look_at_benchmark(config: DataConfig, benchmark: Benchmark) -> dict[str, FoundSplit]:
    """Each split that is asked for, all in one folder, which is there or not.

    Raises RequestError where there is no data root.
    """
    whole = benchmark.whole
    folder = found_folder(data_root(config, {"train": whole}), whole)
    missing = () if folder is not None else (missing_folder(whole),)
    return {
        OURS[name]: FoundSplit(folder, folder is not None, published=count, problems=missing)
        for name, count in benchmark.counts.items()
        if name != "test" or config.shifts is None or name in config.shifts
    }


@functools.lru_cache(maxsize=4)
def _opened(folder: Path, benchmark: Benchmark) -> FamilyData:
    names = benchmark.class_names()
    images = benchmark.read(folder, names)
    sizes = _sizes(folder, benchmark, images)
    splits = {
        split: _split(folder / benchmark.images, split, [one for one in images if one.split == of])
        for of, split in OURS.items()
    }
    empty = [of for of, split in OURS.items() if not len(splits[split])]
    if empty:
        raise RequestError(f"{folder}: its table names no image of {', '.join(empty)}")
    return FamilyData(
        class_names=names,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        shifts={"test": splits["shifts/test"]},
        extras={"val": splits["extras/val"]},
        digest=_digest(names, images, sizes),
        uneven=benchmark.uneven,
        notes=tuple(_notes(benchmark, Counter(image.split for image in images))),
    )


def _sizes(folder: Path, benchmark: Benchmark, images: Sequence[Image]) -> list[int]:
    """How many bytes each image's file has. Raises RequestError for those that lack one."""
    place = folder / benchmark.images
    if not place.is_dir():
        raise RequestError(f"{folder} lacks the folder {benchmark.images}/ with its images")
    manifest = read_manifest(folder, [benchmark.images])
    known = dict(zip(manifest.paths, manifest.sizes, strict=True))
    sizes = [known.get(f"{benchmark.images}/{image.file}") for image in images]
    missing = [image.file for image, size in zip(images, sizes, strict=True) if size is None]
    if missing:
        raise RequestError(
            f"{place} lacks {len(missing):,} of the {len(images):,} images that the table names: "
            f"{listed(missing)}"
        )
    empty = [image.file for image, size in zip(images, sizes, strict=True) if size == 0]
    if empty:
        raise RequestError(f"{place} has files that are empty or links to nothing: {listed(empty)}")
    twice = [file for file, count in Counter(image.file for image in images).items() if count > 1]
    if twice:
        raise RequestError(f"{folder}: its table names images twice: {listed(twice)}")
    return [size for size in sizes if size is not None]


def _split(place: Path, name: str, images: Sequence[Image]) -> Split:
    return FolderSplit(
        place,
        [f"{name}/{image.file}" for image in images],
        torch.tensor([image.label for image in images], dtype=torch.int64),
        None,
        read=read_plain,
        prefix=f"{name}/",
        # With its class, since a training set is divided class by class.
        units=[f"{image.unit}/{image.label}" for image in images],
        groups=[image.group for image in images] if any(i.group for i in images) else None,
    )


def _notes(benchmark: Benchmark, found: Mapping[str, int]) -> Iterator[str]:
    for name, published in benchmark.counts.items():
        if found[name] != published:
            yield (
                f"{benchmark.family}: {name} has {found[name]:,} images here, {published:,} as "
                "published; its numbers are not those of papers"
            )


def _digest(names: Sequence[str], images: Sequence[Image], sizes: Sequence[int]) -> str:
    """Over the names of the classes, and every image's row and size in bytes."""
    digest = hashlib.sha256(b"wilds/1\n")
    digest.update("\0".join(names).encode())
    for image, size in zip(images, sizes, strict=True):
        row = (image.file, image.split, str(image.label), image.unit, image.group, str(size))
        digest.update("\0".join(row).encode() + b"\n")
    return digest.hexdigest()
