"""What lies in a folder of class folders, remembered from one start to the next.

A million files are listed once. Later only the class folders' modification times are looked at,
which change when a file comes, goes or is renamed; a file that is overwritten in place is seen
when something else in its folder changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from carft_core.data.folder_tree import EXTENSIONS, is_text, visible_folders
from carft_core.errors import RequestError
from carft_core.user_cache import keep_table, kept_table, user_cache

VERSION = 1
SETTLED = 2_000_000_000
"""Nanoseconds: what changed shorter ago than this may change again and bear the same time."""
THREADS = 8
"""A listing mostly waits for the disk."""
_ABOUT = b"carft.manifest"

Files = Sequence[tuple[str, int]]
"""Names and sizes in bytes, in the order of the names."""


@dataclass(frozen=True)
class Manifest:
    """The images of a folder of class folders."""

    paths: tuple[str, ...]
    """`<class folder>/<image>`, in the order of the folders' names, then of the images'."""
    counts: Mapping[str, int]
    """How many images each class folder has, in order."""
    empty: tuple[str, ...]
    """Those of the paths that hold nothing, or are links that lead nowhere."""
    digest: str
    """sha256 over every path and size."""
    sizes: tuple[int, ...]
    """In bytes, of each of the paths."""

    def groups(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Each class folder with its paths."""
        at = 0
        for folder, count in self.counts.items():
            yield folder, self.paths[at : at + count]
            at += count


@dataclass(frozen=True)
class _Kept:
    """A manifest with what tells whether it still holds."""

    manifest: Manifest
    changed: Mapping[str, int]
    """When each class folder changed last, in nanoseconds; 0 where that was too short ago."""

    def files(self) -> dict[str, Files]:
        sizes = iter(self.manifest.sizes)
        return {
            folder: [(path.removeprefix(f"{folder}/"), next(sizes)) for path in paths]
            for folder, paths in self.manifest.groups()
        }


def read_manifest(folder: Path, folders: Sequence[str] | None = None) -> Manifest:
    """The images one level below a folder's own folders; hidden and other files are left out.

    `folders` are paths below it, where the images lie deeper; those that are not there are left
    out. What was found is kept in the user's cache. Raises OSError for what cannot be read,
    RequestError for a name that is no text.
    """
    file = user_cache() / "manifests" / f"{_sha256(str(folder.resolve()))}.parquet"
    started = time.time_ns()
    if folders is None:
        folders = _class_folders(folder)
    else:
        folders = [name for name in folders if (folder / name).is_dir()]
    changed = {name: (folder / name).stat().st_mtime_ns for name in folders}
    kept = _kept(file)
    known = {} if kept is None else kept.changed
    stale = [name for name, when in changed.items() if known.get(name) != when]
    if kept is not None and not stale and list(changed) == list(kept.manifest.counts):
        return kept.manifest
    with ThreadPoolExecutor(THREADS) as pool:
        listed = dict(zip(stale, pool.map(_images, [folder / name for name in stale]), strict=True))
    before = {} if kept is None else kept.files()
    found = _made(
        {name: listed[name] if name in listed else before[name] for name in changed},
        {name: when if started - when > SETTLED else 0 for name, when in changed.items()},
    )
    keep_table(file, _table(found))
    return found.manifest


def _class_folders(folder: Path) -> list[str]:
    return [_text(name, folder) for name in visible_folders(folder)]


def _images(folder: Path) -> Files:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower().endswith(EXTENSIONS):
                is_there = entry.is_file()
                size = entry.stat().st_size if is_there else 0
                if is_there or entry.is_symlink():
                    found.append((_text(entry.name, folder), size))
    return sorted(found)


def _text(name: str, folder: Path) -> str:
    if not is_text(name):
        raise RequestError(f"{str(folder)!r}: {name!r} is not a name in UTF-8; rename it")
    return name


def _made(files: Mapping[str, Files], changed: Mapping[str, int]) -> _Kept:
    paths = [f"{folder}/{name}" for folder, items in files.items() for name, _ in items]
    sizes = [size for items in files.values() for _, size in items]
    told = "".join(f"{path}\0{size}\n" for path, size in zip(paths, sizes, strict=True))
    manifest = Manifest(
        tuple(paths),
        {folder: len(items) for folder, items in files.items()},
        tuple(path for path, size in zip(paths, sizes, strict=True) if size == 0),
        _sha256(told),
        tuple(sizes),
    )
    return _Kept(manifest, changed)


def _table(found: _Kept) -> pa.Table:
    manifest = found.manifest
    about = {
        "version": VERSION,
        "counts": manifest.counts,
        "changed": found.changed,
        "empty": manifest.empty,
        "digest": manifest.digest,
    }
    table = pa.table({"path": pa.array(manifest.paths, pa.string()), "size": manifest.sizes})
    return table.replace_schema_metadata({_ABOUT: json.dumps(about)})


def _kept(file: Path) -> _Kept | None:
    """What was made a table of; None where there is nothing of use."""
    table = kept_table(file)
    told = b"{}" if table is None else (table.schema.metadata or {}).get(_ABOUT, b"{}")
    about: dict[str, Any] = json.loads(told)
    if table is None or about.get("version") != VERSION:
        return None
    manifest = Manifest(
        tuple(table["path"].to_pylist()),
        about["counts"],
        tuple(about["empty"]),
        about["digest"],
        tuple(table["size"].to_pylist()),
    )
    return _Kept(manifest, about["changed"])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
