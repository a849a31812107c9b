"""A folder with what lies in it, at any depth: folders, images, other files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath

from carft_core.data.folders import EXTENSIONS, is_text

Place = tuple[int, int]
"""Device and inode, by which a folder is known whatever link leads to it."""


@dataclass(frozen=True)
class Folder:
    """One folder. What begins with a dot does not count."""

    name: str
    below: str
    """Where it lies, relative to the root; the root itself is `.`."""
    loose: int
    """Images that lie in it directly."""
    folders: tuple[Folder, ...]
    """Sorted by name."""
    others: Mapping[str, int]
    """Files that are no images: ending -> how many, at any depth."""
    misnamed: tuple[str, ...] = ()
    """Folders, at any depth, whose names are not UTF-8; they are not looked into."""

    @cached_property
    def total(self) -> int:
        """Images at any depth."""
        return self.loose + sum(folder.total for folder in self.folders)

    @property
    def filled(self) -> list[Folder]:
        """The folders in it that have images."""
        return [folder for folder in self.folders if folder.total]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the folders that have images."""
        return tuple(folder.name for folder in self.filled)

    def as_root(self) -> Folder:
        """The same as a root: paths are relative to it."""
        return _moved(self, self.below, ".")


def look(root: Path) -> Folder:
    """Everything below a folder. Raises OSError for what cannot be read."""
    return _look(root, ".", ())


def _look(path: Path, below: str, above: tuple[Place, ...]) -> Folder:
    status = path.stat()
    here = (status.st_dev, status.st_ino)
    with os.scandir(path) as entries:
        visible = sorted(
            (entry for entry in entries if not entry.name.startswith(".")), key=lambda one: one.name
        )
    inner: list[Folder] = []
    misnamed: list[str] = []
    loose, others = 0, Counter[str]()
    for entry in visible:
        if entry.is_dir():
            status = entry.stat()
            where = entry.name if below == "." else f"{below}/{entry.name}"
            if not is_text(entry.name):
                misnamed.append(where)
            elif (status.st_dev, status.st_ino) not in (*above, here):  # else a link into a circle
                inner.append(_look(path / entry.name, where, (*above, here)))
        elif entry.name.lower().endswith(EXTENSIONS):
            loose += 1
        else:
            others[PurePath(entry.name).suffix.lower()] += 1
    for folder in inner:
        others.update(folder.others)
        misnamed += folder.misnamed
    return Folder(path.name, below, loose, tuple(inner), others, tuple(misnamed))


def _moved(folder: Folder, old: str, new: str) -> Folder:
    """Paths that began with `old` begin with `new`."""
    rest = folder.below.removeprefix(old).lstrip("/")
    below = rest or new
    return replace(
        folder, below=below, folders=tuple(_moved(one, old, new) for one in folder.folders)
    )
