"""A user's own images, in class folders or shards: `train/`, `test/`, `val/`, `shifts/<name>/`."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from carft_core.data.base import Family, FamilyData, FoundSplit, Split
from carft_core.data.data_root import readable
from carft_core.data.folder_split import FolderSplit
from carft_core.data.folder_tree import (
    REQUIRED,
    Listing,
    Tree,
    class_names,
    listed,
    listing_digest,
    nearest,
    read_tree,
    refusal,
)
from carft_core.data.held_out import refuse_held_out
from carft_core.data.photo_views import read_rgb
from carft_core.data.shard_split import ShardSplit
from carft_core.data.shards import ShardIndex
from carft_core.data.shift_names import RESERVED
from carft_core.errors import RequestError

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig

LAYOUT = (
    "expected train/<class>/<image>, test/<class>/<image>, optionally val/<class>/<image> and "
    "shifts/<name>/<class>/<image>; or tar shards in the place of <class>/<image>"
)
SHIFT_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def open_image_folder(config: DataConfig) -> FamilyData:
    """Open the tree at `data.root`. A process reads a tree once.

    Raises RequestError with every mistake of the tree at once. Images are not decoded here: a
    broken one raises when its turn comes.
    """
    root = _root(config)
    with readable():
        return _opened(root)


def look_image_folder(config: DataConfig) -> Mapping[str, FoundSplit]:
    """Each split of the tree as it is, whatever is wrong in the others."""
    root = _root(config)
    with readable():
        tree = read_tree(root)
    problems = [*tree.problems, *_split_problems(tree)]
    absent = {name: FoundSplit(is_there=False) for name in REQUIRED if name not in tree.splits}
    return absent | {
        name: found_in(
            root / name,
            listing,
            tree.classes,
            [text for text in problems if text.startswith(f"{name}/")],
        )
        for name, listing in tree.splits.items()
    }


def found_in(
    folder: Path | None, listing: Listing, classes: Sequence[str], problems: Sequence[str]
) -> FoundSplit:
    """A split as it is listed, of a family that has these classes."""
    return FoundSplit(
        folder,
        images=sum(map(len, listing.values())),
        classes=sum(bool(listing.get(name)) for name in classes),
        expected_classes=len(classes),
        digest=listing_digest(listing),
        problems=tuple(problems),
    )


def _root(config: DataConfig) -> Path:
    """Raises RequestError when there is none."""
    if config.root is None:
        raise RequestError(f"data.root: which folder holds the images? image_folder {LAYOUT}")
    refuse_held_out(
        config, "leave the field out and put what is to be held out into shifts/<name>/"
    )
    root = Path(config.root).expanduser().absolute()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise RequestError(f"data.root: {root} {what}; {LAYOUT}")
    return root


@functools.lru_cache(maxsize=4)
def _opened(root: Path) -> FamilyData:
    tree = read_tree(root)
    problems = [*tree.problems, *_split_problems(tree)]
    names, name_problems = class_names(root, tree.classes)
    problems += name_problems
    if problems:
        title = f"data.root: {root} cannot be used ({LAYOUT}):"
        raise RequestError(refusal(title, problems))
    splits = {
        name: folder_split(root, listing, tree.classes, tree.shards.get(name))
        for name, listing in tree.splits.items()
    }
    shifts = {
        name.removeprefix("shifts/"): split
        for name, split in splits.items()
        if name.startswith("shifts/")
    }
    digest = _digest(tree, names)
    return FamilyData(
        names,
        splits["train"],
        splits.get("val"),
        splits["test"],
        shifts,
        digest,
        digests={name: listing_digest(listing) for name, listing in tree.splits.items()},
    )


def folder_split(
    root: Path, listing: Listing, classes: Sequence[str], shards: ShardIndex | None = None
) -> Split:
    """The split that holds the images of a listing, in the order of `classes`.

    Its folders are among them. With `shards` the images lie in these.
    """
    ids = [path for name in classes for path in listing.get(name, ())]
    counts = torch.tensor([len(listing.get(name, ())) for name in classes])
    labels = torch.repeat_interleave(torch.arange(len(classes)), counts)
    present = tuple(index for index, name in enumerate(classes) if name in listing)
    some = None if len(present) == len(classes) else present
    if shards is not None:
        return ShardSplit(root, ids, labels, some, shards)
    return FolderSplit(root, ids, labels, some, read=read_rgb)


def _split_problems(tree: Tree) -> list[str]:
    """What does not fit between the splits."""
    problems = []
    known = frozenset(tree.classes)
    for name, listing in tree.splits.items():
        unknown = [folder for folder in listing if folder not in known]
        if known and unknown:
            near = "".join(nearest(folder, tree.classes) for folder in unknown[:1])
            problems.append(
                f"{name}/ has folders that are no class of train: {listed(unknown)}{near}; "
                f"train has {len(known)}: {listed(tree.classes)}"
            )
        missing = [folder for folder in tree.classes if folder not in listing]
        if listing and missing and not name.startswith("shifts/"):
            problems.append(f"{name}/ lacks classes that train has: {listed(missing)}")
    if len(tree.classes) == 1:
        problems.append(f"train/ has the single class {tree.classes[0]!r}; two are the least")
    for name in tree.splits:
        shift = name.removeprefix("shifts/")
        if shift != name and (shift in RESERVED or not SHIFT_NAME.fullmatch(shift)):
            problems.append(
                f"{name}/ gives its name to the metric ood/{shift}/top1: rename it, using letters, "
                "digits, '_', '-' and '.' only, and not 'mean', which is the mean over shifts, "
                "or 'val', which is for choosing"
            )
    return problems


def _digest(tree: Tree, names: Sequence[str]) -> str:
    """Over the classes, their names, and every image's path below the root and size in bytes.

    The images' contents are not read: that would take minutes for a million of them.
    """
    digest = hashlib.sha256(b"image_folder/1\n")
    for folder, name in zip(tree.classes, names, strict=True):
        digest.update(f"class\0{folder}\0{name}\n".encode())
    images: Mapping[str, int] = {
        path: size
        for listing in tree.splits.values()
        for files in listing.values()
        for path, size in files.items()
    }
    for path in sorted(images):
        digest.update(f"image\0{path}\0{images[path]}\n".encode())
    return digest.hexdigest()


IMAGE_FOLDER = Family(
    name="image_folder",
    summary="your own images, in class folders under data.root",
    open=open_image_folder,
    defaults={
        "data.augmentation": "wise_ft",
        "prompts.classes": "openai",
        "prompts.contexts": "openai",
    },
    look=look_image_folder,
)
