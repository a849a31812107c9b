"""The folders of published data sets below a data root, and what is wrong with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from carft_sweep.carft_core.data.base import DataConfig, DataFolder
from carft_sweep.carft_core.data.listing import (
    Manifest,
    join_names,
    nearest,
    no_class_folders,
    read_manifest,
    refusal,
    visible_folders,
)
from carft_sweep.carft_core.errors import RequestError

DATA_ROOT_ENV = "CARFT_DATA"
"""The environment variable that the reader of a sweep file takes for a missing `data.root`."""


def data_root(config: DataConfig, folders: Mapping[str, DataFolder]) -> Path:
    """Return the folder that holds the data sets. Raises RequestError where none is named, or it
    does not exist."""
    if config.root is None:
        usual = ", ".join(folder.names[0] for folder in folders.values())
        raise RequestError(
            f"data.root: which folder holds the data sets? Give data.root, --data-root or "
            f"{DATA_ROOT_ENV}; {config.family} looks there for {usual}"
        )
    return require_folder(Path(config.root), "; it must hold a folder for each data set")


def require_folder(folder: Path, advice: str = "", *, named: str = "data.root") -> Path:
    """Return a folder's absolute path. Raises RequestError with `advice` where that is no folder;
    `named` is the field that names the folder."""
    folder = folder.expanduser().absolute()
    try:
        is_there = folder.is_dir()
    except OSError as error:  # a name that is too long
        raise RequestError(f"{named}: {folder} cannot be read: {error.strerror}") from None
    if not is_there:
        what = "is not a folder" if folder.exists() else "does not exist"
        raise RequestError(f"{named}: {folder} {what}{advice}")
    return folder


def find_folders(
    root: Path, folders: Mapping[str, DataFolder], *, advice: str = ""
) -> dict[str, Path]:
    """Return the path of each of a family's `folders` below the data root. Raises RequestError that
    names all missing ones, followed by `advice`."""
    places = {name: find_folder(root, folder) for name, folder in folders.items()}
    missing = [folders[name] for name, path in places.items() if path is None]
    if missing:
        raise RequestError("\n".join(_explain_missing(root, missing, advice)))
    return {name: path for name, path in places.items() if path is not None}


def find_folder(root: Path, folder: DataFolder) -> Path | None:
    """Return the first of `folder.names` that is a folder below `root`; None where none is."""
    return next((root / name for name in folder.names if (root / name).is_dir()), None)


def _explain_missing(root: Path, missing: Iterable[DataFolder], advice: str) -> Iterable[str]:
    yield f"data.root: {root} lacks folders:"
    for folder in missing:
        others = f" (or {', '.join(folder.names[1:])})" if len(folder.names) > 1 else ""
        yield (
            f"  {folder.names[0]}{others} with {folder.layout}, {folder.images:,} images; "
            f"from {folder.origin}"
        )
        deeper = Path(folder.names[0]).parts
        if len(deeper) > 1 and root.joinpath(*deeper[1:]).is_dir():
            yield (
                f"    {Path(*deeper[1:])} lies in {root} itself: the data root is the folder "
                f"around {deeper[0]}/"
            )
    if advice:
        yield advice


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turn the operating system's errors within the context into RequestErrors of `data.root`."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"data.root: {error.filename} cannot be read: {error.strerror}"
        ) from None


def read_folders(
    family: str, places: Mapping[str, Path], folders: Mapping[str, DataFolder]
) -> dict[str, Manifest]:
    """Return the listed images of each folder. Raises RequestError with all that is wrong with the
    folders, OSError for an unreadable one."""
    manifests = {name: read_manifest(place) for name, place in places.items()}
    problems = [
        f"{place}: {problem}"
        for name, place in places.items()
        for problem in problems_of(place, manifests[name], folders[name])
    ]
    if problems:
        raise RequestError(refusal(f"data.root: {family} cannot be used:", problems))
    return manifests


def count_notes(family: str, counts: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Return a note for each split whose number of images, the first in `counts`, is not the
    published number, the second."""
    return tuple(
        f"{family}: {name} has {count:,} images here, {published:,} as published; its numbers are "
        "not those of papers"
        for name, (count, published) in counts.items()
        if count != published
    )


def problems_of(folder: Path, manifest: Manifest, expected: DataFolder) -> Iterator[str]:
    """Yield how a folder, which holds `manifest`, differs from the published one, `expected`: in
    class folders; other numbers of images are no difference."""
    counts, classes = manifest.counts, dict.fromkeys(expected.classes)
    if not counts:
        yield no_class_folders(folder, f", expected {expected.layout}", expected.advice)
        return
    # Only then: to look for folders among a million images takes as long as to list them.
    others = [] if classes.keys() & counts.keys() else [*counts]
    deeper = [name for name in others if classes.keys() <= {*visible_folders(folder / name)}]
    if deeper:
        yield f"has its class folders one level too deep, in {deeper[0]}/: move them up"
        return
    missing = [name for name in classes if name not in counts]
    if missing:
        yield f"lacks {len(missing)} of {len(classes)} class folders: {join_names(missing)}"
    strange = [] if expected.has_others else [name for name in counts if name not in classes]
    if strange:
        near = nearest(strange[0], missing)
        yield f"has {len(strange)} folders that are no class of it: {join_names(strange)}{near}"
    bare = [name for name, count in counts.items() if count == 0 and name in classes]
    if bare:
        yield f"has class folders without images: {join_names(bare)}"
    empty = [path for path in manifest.empty if path.partition("/")[0] in classes]
    if empty:
        yield f"has files that are empty or links to nothing: {join_names(empty)}"
