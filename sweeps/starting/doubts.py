"""What looks suspicious in a folder of images: the user should look before training."""

from __future__ import annotations

import filecmp
import itertools
import re
import statistics
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from carft_core.data.folders import listed
from sweeps.starting.folders import Folder
from sweeps.starting.survey import Survey

IMBALANCE = 10
"""The largest class over the smallest, from which on it is told."""
FEW_IN_ALL = 100
FEW_OF_A_CLASS = 5
FEW_TO_TRAIN = 10
SAMPLE = 24
"""Images that are opened, to see how large they are."""
UNREAD = (".gif", ".heic", ".heif", ".avif", ".svg", ".jp2", ".jxl")
NO_NAME = re.compile(r"n\d{8}|\d+|(class|label)[-_ ]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Sizes:
    """Of a sample of the images."""

    median: int | None
    """Of the longer sides, in pixels; None when none could be opened."""
    broken: tuple[str, ...]
    """Those that could not be opened."""
    seen: int
    """How many were tried."""


def sizes(found: Survey) -> Sizes:
    """Open some images, spread evenly over train."""
    by_class = list(found.splits["train"].values())
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_class[:: _step(by_class)]))
    chosen = itertools.islice((path for path in rounds if path is not None), SAMPLE)
    sides, broken = [], []
    for path in chosen:
        try:
            with Image.open(found.layout.root / path) as image:
                sides.append(max(image.size))
        except (OSError, ValueError, Image.DecompressionBombError):
            broken.append(path)
    median = round(statistics.median(sides)) if sides else None
    return Sizes(median, tuple(broken), len(sides) + len(broken))


def _step(classes: Sized) -> int:
    """So that not the first classes alone are seen where there are many."""
    return max(1, len(classes) // SAMPLE)


def doubts(found: Survey, top: Folder, seen: Sizes) -> Iterator[str]:
    """One sentence for each thing that may not be as it was meant."""
    yield from _numbers(found)
    yield from _shifts(found)
    yield from _names(found)
    yield from _files(found, top)
    if seen.broken:
        tried = f"{len(seen.broken)} of {seen.seen} images that were tried"
        yield f"{tried} cannot be opened: {listed(seen.broken)}"


def _numbers(found: Survey) -> Iterator[str]:
    train = {name: len(files) for name, files in found.splits["train"].items()}
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] >= IMBALANCE * train[least]:
        yield (
            f"the classes of train are uneven: {train[most]} images of {most}, {train[least]} of "
            f"{least}; accuracy is dominated by the large ones"
        )
    few = [name for name, count in train.items() if count < FEW_TO_TRAIN]
    if few:
        yield f"train has fewer than {FEW_TO_TRAIN} images of {listed(few)}"
    test = found.test_images
    total = sum(test.values())
    if total < FEW_IN_ALL or min(test.values()) < FEW_OF_A_CLASS:
        yield (
            f"the test is small: {total} images, {min(test.values())} in its smallest class; "
            f"{_uncertain(total)}"
        )


def _shifts(found: Survey) -> Iterator[str]:
    if not found.layout.shifts:
        yield "there is no shift, so nothing is measured out of distribution"
    for name in found.layout.shifts:
        files = found.splits[name]
        lacking = [one for one in found.classes if one not in files]
        if lacking:
            yield (
                f"the shift {name} has {len(files)} of {len(found.classes)} classes, not "
                f"{listed(lacking)}; on it the model chooses among its own alone"
            )
        total = sum(map(len, files.values()))
        if total < FEW_IN_ALL:
            yield f"the shift {name} is small: {total} images; {_uncertain(total)}"


def _uncertain(images: int) -> str:
    """Half of the widest 95 % interval of a proportion: 1.96 * sqrt(1/4 / n)."""
    return f"an accuracy on it is uncertain by up to {98 / images**0.5:.0f} points"


def _names(found: Survey) -> Iterator[str]:
    if found.class_names_file is None:
        nameless = [name for name in found.classes if NO_NAME.fullmatch(name)]
        if nameless:
            yield (
                f"prompts would speak of {listed(nameless)}: say what these are in class_names, or "
                "the zero-shot model cannot know them"
            )
    odd = [name for name in found.classes if name != name.strip() or "  " in name]
    if odd:
        yield f"names of class folders have spaces at an end, or two in a row: {listed(odd)}"


def _files(found: Survey, top: Folder) -> Iterator[str]:
    unread = {end: count for end, count in top.others.items() if end in UNREAD}
    if unread:
        told = [f"{count} {end}" for end, count in sorted(unread.items())]
        yield f"images of these kinds are not read; convert them: {', '.join(told)}"
    for folder in (found.layout.train, found.layout.test, *found.layout.shifts.values()):
        if folder is not None and folder.loose and folder.folders:
            where = found.layout.root.name if folder.below == "." else folder.below
            yield f"images outside the class folders of {where}/ are left out: {folder.loose}"
    copies = list(_copies(found))
    if copies:
        many = "1 image of test is" if len(copies) == 1 else f"{len(copies)} images of test are"
        yield f"{many} in train as well, such as {copies[0]}: tested on what was trained on"


def _copies(found: Survey) -> Iterator[str]:
    """Images of test whose name, size and content one of train has."""
    root = found.layout.root
    for name, files in found.splits.get("test", {}).items():
        known = {
            (Path(path).name, size): path for path, size in found.splits["train"][name].items()
        }
        for path, size in files.items():
            same = known.get((Path(path).name, size))
            if same is not None and filecmp.cmp(root / path, root / same, shallow=False):
                yield path
