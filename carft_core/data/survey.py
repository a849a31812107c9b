"""The survey of a family's data: each split's images, classes and digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from carft_sweep.carft_core.data import FAMILIES, as_used, open_whole
from carft_sweep.carft_core.data.base import DataConfig, FamilyData, Split
from carft_sweep.carft_core.data.folders import find_folder
from carft_sweep.carft_core.errors import RequestError


@dataclass(frozen=True)
class FoundSplit:
    """What was found of one split."""

    images: int
    classes: int
    """How many of its classes have an image."""
    expected_classes: int
    digest: str
    """sha256 of the split's content, independent of where it lies."""
    folder: Path | None = None
    """The split's folder; None where the family does not say it."""
    published: int | None = None
    """How many images its makers published."""

    @property
    def status(self) -> str:
        """`differs` where the number of images is not the published one, else `ok`."""
        return "ok" if self.published in (None, self.images) else "differs"


@dataclass(frozen=True)
class Survey:
    """A family's data as found."""

    config: DataConfig
    splits: Mapping[str, FoundSplit]
    """Named as in `FamilyData.splits`; none where the data cannot be opened."""
    data: FamilyData | None
    """The data as a run uses them; None where a run would refuse them."""
    refusal: str | None
    """Everything for which a run would refuse the data; None where a run uses it."""


def survey(config: DataConfig) -> Survey:
    """Return the survey of the data that a config names; errors become its `refusal`."""
    try:
        whole = open_whole(config)
    except RequestError as error:
        return Survey(config, {}, None, str(error))
    splits = dict(_found_splits(whole, config))
    try:
        return Survey(config, splits, as_used(whole, config), None)
    except RequestError as error:
        return Survey(config, splits, None, str(error))


def _found_splits(data: FamilyData, config: DataConfig) -> Iterator[tuple[str, FoundSplit]]:
    folders = FAMILIES[config.family].folders
    for name, split in data.splits.items():
        # Of other families a folder is no split, but a domain, say.
        folder = folders.get(name, folders.get(name.removeprefix("shifts/")))
        found = FoundSplit(
            images=len(split),
            classes=len(split.labels.unique()),
            expected_classes=len(split.classes or data.class_names),
            digest=data.digests.get(name) or _digest(split),
        )
        if folder is not None and config.root is not None and "train" in folders:
            place = find_folder(Path(config.root), folder)
            found = replace(found, folder=place, published=folder.images)
        yield name, found


def _digest(split: Split) -> str:
    """Return a digest of each image's id and label, for a split without a digest of its own."""
    items = sorted(zip(split.ids, split.labels.tolist(), strict=True))
    text = "".join(f"{item}\0{label}\n" for item, label in items)
    return hashlib.sha256(text.encode()).hexdigest()
