"""How Caltech-101 and SUN397 are divided, of which torchvision knows the whole alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

PER_CLASS = 30
"""Images of a class of Caltech-101 that train, as in CLIP's paper; all others test."""

Classes = Mapping[str, str]
"""The path below the data root of each image -> its class's name in the data set."""


def by_number(folder: Path, classes: Classes) -> tuple[Classes, Classes]:
    """(train, test): 30 of each class, those whose paths have the least hashes. No seed draws."""
    del folder
    by_class: dict[str, list[str]] = {}
    for path in sorted(classes, key=lambda path: hashlib.sha256(path.encode()).digest()):
        by_class.setdefault(classes[path], []).append(path)
    drawn = {path for paths in by_class.values() for path in paths[:PER_CLASS]}
    return (
        {path: name for path, name in classes.items() if path in drawn},
        {path: name for path, name in classes.items() if path not in drawn},
    )


def by_lists(folder: Path, classes: Classes) -> tuple[Classes, Classes]:
    """(train, test): the first of SUN397's ten official partitions.

    Its lists name images as `/a/abbey/sun_aaa.jpg`. Those that are not there are left for the
    count to tell. Raises OSError when a list cannot be read.
    """
    train, test = (
        [f"{folder.name}{line}" for line in (folder / file).read_text().split()]
        for file in ("Training_01.txt", "Testing_01.txt")
    )
    return (
        {path: classes[path] for path in train if path in classes},
        {path: classes[path] for path in test if path in classes},
    )
