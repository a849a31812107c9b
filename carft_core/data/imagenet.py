"""ImageNet-1k and the shifts that robust fine-tuning is measured on, in their official layouts."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from open_clip import IMAGENET_CLASSNAMES

from carft_core.data.base import Family, FamilyData, Split
from carft_core.data.class_folders import problems_of
from carft_core.data.data_root import data_root, find_folders
from carft_core.data.folder_split import FolderSplit
from carft_core.data.folder_tree import refusal
from carft_core.data.held_out import refuse_held_out
from carft_core.data.imagenet_folders import FOLDERS, SHIFTS, corrupted, folder_of
from carft_core.data.imagenet_labels import alike_in, labels_of
from carft_core.data.manifest import Manifest, read_manifest
from carft_core.data.photo_views import read_inside_border, read_plain
from carft_core.data.shift_names import named_shifts
from carft_core.errors import RequestError

if TYPE_CHECKING:
    from carft_core.config import DataConfig

MORE_FOLDERS = ("objectnet",)
"""Has folders of objects that are no classes of ImageNet; they are left out."""
ADVICE = (
    f"The OOD mean is over the shifts in data.shifts, {', '.join(SHIFTS)} where it is left out: "
    "name those that you have, or [] for none."
)


def open_imagenet(config: DataConfig) -> FamilyData:
    """Open what lies below `data.root`: train, the official val as test, and `data.shifts`.

    Raises RequestError naming every folder that is missing, or every mistake in those that are
    there. Images are not decoded here: a broken one raises when its turn comes.
    """
    refuse_held_out(config, "data.shifts says what is measured out of distribution")
    root = data_root(config, {name: FOLDERS[name] for name in ("train", "test", *SHIFTS)})
    known = (*SHIFTS, *corrupted())
    shifts = SHIFTS if config.shifts is None else named_shifts(config.shifts, known)
    wanted = {name: folder_of(name) for name in ("train", "test", *shifts)}
    places = find_folders(root, wanted, advice=ADVICE)
    try:
        return _opened(tuple(places.items()))
    except OSError as error:
        raise RequestError(
            f"data.root: {error.filename} cannot be read: {error.strerror}"
        ) from None


@functools.lru_cache(maxsize=4)
def _opened(places: tuple[tuple[str, Path], ...]) -> FamilyData:
    manifests = {name: read_manifest(folder) for name, folder in places}
    problems = [
        f"{folder}: {problem}"
        for name, folder in places
        for problem in _problems(name, folder, manifests[name])
    ]
    if problems:
        raise RequestError(refusal("data.root: imagenet cannot be used:", problems))
    splits = {name: _split(name, folder, manifests[name]) for name, folder in places}
    train, test = splits.pop("train"), splits.pop("test")
    digests = {name: manifest.digest for name, manifest in manifests.items()}
    return FamilyData(
        class_names=tuple(IMAGENET_CLASSNAMES),
        train=train,
        val=None,
        test=test,
        shifts=splits,
        digest=_digest(digests),
        training_digest=_digest({"train": digests["train"]}),
        parts={name: tuple(sorted(labels_of(name).values())) for name in ("r", "a")},
        notes=tuple(_notes({"train": train, "test": test, **splits})),
    )


def _problems(name: str, folder: Path, manifest: Manifest) -> Iterator[str]:
    return problems_of(
        folder,
        manifest,
        labels_of(name),
        layout=folder_of(name).layout,
        loose=": sort them into folders by their classes, as torchvision.datasets.ImageNet does "
        "with the archive of val and the development kit",
        more=name in MORE_FOLDERS,
    )


def _split(name: str, folder: Path, manifest: Manifest) -> Split:
    labels = labels_of(name)
    groups = [(labels[one], paths) for one, paths in manifest.groups() if one in labels]
    counts = torch.tensor([len(paths) for _, paths in groups])
    present = tuple(sorted(labels.values()))
    return FolderSplit(
        folder,
        [f"{name}/{path}" for _, paths in groups for path in paths],
        torch.repeat_interleave(torch.tensor([label for label, _ in groups]), counts),
        None if len(present) == len(IMAGENET_CLASSNAMES) else present,
        read=read_inside_border if name == "objectnet" else read_plain,
        prefix=f"{name}/",
        alike=alike_in(name),
    )


def _notes(splits: Mapping[str, Split]) -> Iterator[str]:
    for name, split in splits.items():
        published = folder_of(name).images
        if len(split) != published:
            yield (
                f"imagenet: {name} has {len(split):,} images here, {published:,} as published; "
                "its numbers are not those of papers"
            )


def _digest(manifests: Mapping[str, str]) -> str:
    """Over the names of the classes, and of each split the class of every folder and its images."""
    digest = hashlib.sha256(b"imagenet/1\n")
    digest.update("\0".join(IMAGENET_CLASSNAMES).encode())
    for name, content in manifests.items():
        digest.update(f"\n{name}\0{sorted(labels_of(name).items())}\0{alike_in(name)}".encode())
        digest.update(f"\0{content}".encode())
    return digest.hexdigest()


IMAGENET = Family(
    name="imagenet",
    summary="ImageNet-1k under data.root, with V2, R, A, Sketch, ObjectNet, and C when asked for",
    open=open_imagenet,
    defaults={
        "data.augmentation": "wise_ft",
        "data.val_fraction": 0.02,
        "prompts.classes": "openai",
        "prompts.contexts": "openai",
    },
    folders=FOLDERS,
    shared_names=("missile", "sunglasses"),
)
