"""Listings of image files on disk, stored in the user's cache and renewed where folders change."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from carft_sweep.carft_core.data.images import THREADS
from carft_sweep.carft_core.errors import RequestError, misspelt
from carft_sweep.carft_core.files import user_cache, write_cache

VERSION = 1
"""The version of cached listings; one of another version is made anew."""
SETTLED = 2_000_000_000
"""Nanoseconds: what changed shorter ago than this may change again and bear the same time."""
_ABOUT = b"carft.manifest"
Files = Sequence[tuple[str, int]]
"""Names and sizes in bytes, in the order of the names."""


@dataclass(frozen=True)
class Manifest:
    """The images of a folder of class folders."""

    paths: tuple[str, ...]
    """`<class folder>/<image>`, in the order of the folders' names, then of the images'."""
    sizes: tuple[int, ...]
    """In bytes, of each of the paths."""
    counts: Mapping[str, int]
    """How many images each class folder has, in order."""
    digest: str
    """sha256 over every path and size."""

    @property
    def empty(self) -> tuple[str, ...]:
        """The paths of empty files and of links that lead nowhere."""
        return tuple(path for path, size in zip(self.paths, self.sizes, strict=True) if size == 0)

    def groups(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield each class folder with its paths."""
        at = 0
        for folder, count in self.counts.items():
            yield folder, self.paths[at : at + count]
            at += count


def read_manifest(folder: Path, folders: Sequence[str] | None = None) -> Manifest:
    """Return the images one level below a folder's subfolders; hidden and other files are left out.

    `folders` names the class folders instead, where these lie deeper; missing ones are left out.
    The listing is stored in the user's cache. Raises OSError for an unreadable folder, RequestError
    for a name that is no text.
    """
    file = user_cache() / "manifests" / f"{_sha256(str(folder.resolve()))}.parquet"
    started = time.time_ns()
    if folders is None:
        folders = [_text(name, folder) for name in visible_folders(folder)]
    else:
        folders = [name for name in folders if (folder / name).is_dir()]
    changed = {name: (folder / name).stat().st_mtime_ns for name in folders}
    before, changed_before = _cached(file)
    stale = [name for name, when in changed.items() if changed_before.get(name) != when]
    if not stale and list(changed) == list(before.counts):
        return before
    size_of = dict(zip(before.paths, before.sizes, strict=True))
    files = {name: [(path, size_of[path]) for path in paths] for name, paths in before.groups()}
    with ThreadPoolExecutor(THREADS) as pool:
        listings = pool.map(_images, [folder / name for name in stale])
        for name, listing in zip(stale, listings, strict=True):
            files[name] = [(f"{name}/{image}", size) for image, size in listing]
    rows = [row for name in changed for row in files[name]]
    manifest = Manifest(
        tuple(path for path, _ in rows),
        tuple(size for _, size in rows),
        {name: len(files[name]) for name in changed},
        _sha256("".join(f"{path}\0{size}\n" for path, size in rows)),
    )
    # When each class folder changed last; 0 where that was too short ago.
    settled = {name: when if started - when > SETTLED else 0 for name, when in changed.items()}
    about = {
        "version": VERSION,
        "counts": manifest.counts,
        "changed": settled,
        "digest": manifest.digest,
    }
    table = pa.table({"path": pa.array(manifest.paths, pa.string()), "size": manifest.sizes})
    table = table.replace_schema_metadata({_ABOUT: json.dumps(about)})
    write_cache(
        file, lambda new: pq.write_table(table, new, compression="zstd", use_dictionary=False)
    )
    return manifest


def _cached(file: Path) -> tuple[Manifest, Mapping[str, int]]:
    """Return the cached listing and when each class folder was last changed; empty without one."""
    table, about = None, dict[str, Any]()
    with contextlib.suppress(OSError, ValueError):  # ValueError: pyarrow's for no parquet file
        table = pq.ParquetFile(file).read()
        about = json.loads((table.schema.metadata or {}).get(_ABOUT, b"{}"))
    if table is None or about.get("version") != VERSION:
        return Manifest((), (), {}, _sha256("")), {}
    paths, sizes = (tuple(table[name].to_pylist()) for name in ("path", "size"))
    return Manifest(paths, sizes, about["counts"], about["digest"]), about["changed"]


def _images(folder: Path) -> Files:
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower().endswith(EXTENSIONS):
                is_there = entry.is_file()
                size = entry.stat().st_size if is_there else 0
                if is_there or entry.is_symlink():
                    files.append((_text(entry.name, folder), size))
    return sorted(files)


def _text(name: str, folder: Path) -> str:
    if not is_text(name):
        raise RequestError(f"{str(folder)!r}: {name!r} is not a name in UTF-8; rename it")
    return name


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# torchvision's IMG_EXTENSIONS; its module would import every data set that it knows.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
OTHER_PICTURES = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".gif", ".psd", ".svg"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)
"""Suffixes of phones, cameras and programs that are not read."""
LISTED_AT_MOST = 8
PROBLEMS_SHOWN = 20
Listing = Mapping[str, Mapping[str, int]]
"""Class folder -> path below the root -> size in bytes, in the order of the paths."""


def listing_digest(listing: Listing) -> str:
    """Return the sha256 over every image's class, path and size in bytes; no image is read."""
    digest = hashlib.sha256(b"split/1\n")
    for folder in sorted(listing):
        for path, size in sorted(listing[folder].items()):
            digest.update(f"{folder}\0{path}\0{size}\n".encode())
    return digest.hexdigest()


READ_UNASKED = 10_000
"""Up to so many images are read before runs begin, to compare them and to see whether they can be
decoded; of more images none is."""


def copies_of_training(root: Path, splits: Mapping[str, Listing]) -> Iterator[str]:
    """Yield a sentence for each split but train that has files equal to a file of train, byte by
    byte. Files of equal size alone are read; of more than READ_UNASKED images none is."""
    files_of = {
        name: [item for files in listing.values() for item in files.items()]
        for name, listing in splits.items()
    }
    if sum(map(len, files_of.values())) > READ_UNASKED:
        return
    by_size = defaultdict[int, list[str]](list)
    for path, size in files_of.pop("train"):
        by_size[size].append(path)

    @functools.cache
    def by_content(size: int) -> dict[str, str]:
        return {_content_digest(root / path): path for path in by_size[size]}

    for name, files in files_of.items():
        twins = {
            path: twin
            for path, size in files
            if size in by_size and (twin := by_content(size).get(_content_digest(root / path)))
        }
        if twins:
            path, twin = next(iter(twins.items()))
            yield (
                f"{name} has {len(twins)} of its {len(files)} images from train, byte by byte, "
                f"such as {path}, which is {twin}: it measures memory"
            )


def _content_digest(file: Path) -> str:
    """Return a digest of a file's bytes; of an unreadable file its name, which equals no digest."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return str(file)


def nearest(name: str, allowed: Collection[str]) -> str:
    """Return `; did you mean 'cat'?` for an allowed name spelt similarly, else ""."""
    near = misspelt(name, allowed)
    return f"; did you mean {near!r}?" if near else ""


def join_names(names: Sequence[str]) -> str:
    """Return a text with the first few names, and the number of the others."""
    more = len(names) - LISTED_AT_MOST
    return ", ".join(names[:LISTED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def refusal(title: str, problems: Sequence[str]) -> str:
    """Return a message with the first problems, a line for each."""
    shown = [f"  {problem}" for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        shown.append(f"  and {len(problems) - PROBLEMS_SHOWN} more")
    return "\n".join([title, *shown])


def visible_folders(folder: Path) -> list[str]:
    """Return the names of a folder's subfolders that do not begin with a dot, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def no_class_folders(folder: Path, expected: str = "", advice: str = "") -> str:
    """Return the message for a split without class folders: what is `expected`, and `advice` where
    images lie directly in the split's folder."""
    loose = any(file.name.lower().endswith(EXTENSIONS) for file in folder.iterdir())
    return f"has no class folders{expected}" + (
        f"; its images lie outside them{advice}" if loose else ""
    )


@dataclass
class ImageScan:
    """A lister of images below a root, which collects what is wrong there and what is left out."""

    root: Path
    with_empty: bool = False
    """Whether empty files are listed, as images that cannot be read; otherwise they are wrong."""
    problems: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """Pictures in formats that are not read."""

    def images(
        self, below: str, above: tuple[tuple[int, int], ...] = ()
    ) -> Iterator[tuple[str, int]]:
        """Yield (path below the root, size) of every visible image in the folder `below`, at any
        depth. `above` has (device, inode) of the folders around it."""
        status = (self.root / below).stat()
        own = (status.st_dev, status.st_ino)
        if own in above:
            self.problems.append(f"{below}/ is a link to a folder that it lies in")
            return
        with os.scandir(self.root / below) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in visible:
            path, name = f"{below}/{entry.name}", entry.name.lower()
            if entry.is_dir():
                yield from self.images(path, (*above, own))
            elif not name.endswith(EXTENSIONS):
                self.unread += [path] * name.endswith(OTHER_PICTURES)
            elif not entry.is_file():
                self.problems.append(f"{path} is a link to nothing")
            elif (size := entry.stat().st_size) == 0 and not self.with_empty:
                self.problems.append(f"{path} is empty")
            elif not is_text(path):
                self.problems.append(f"{path!r} is not a name in UTF-8; rename it")
            else:
                yield path, size


def unread_notes(paths: Sequence[str]) -> Iterator[str]:
    """Yield a sentence on pictures that are left out for their format, where there are any."""
    if paths:
        kinds = ", ".join(sorted({Path(path).suffix for path in paths}))
        pictures, them = ("picture is", "it") if len(paths) == 1 else ("pictures are", "them")
        yield (
            f"{len(paths)} {pictures} left out, since {kinds} is not read; save {them} as JPEG: "
            f"{join_names(sorted(paths))}"
        )


def is_text(name: str) -> bool:
    """Return whether a name on disk is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
