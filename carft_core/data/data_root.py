"""Where families lie below the data root, and what is said of those that do not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from carft_core.data.base import DataFolder
from carft_core.errors import RequestError

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig

VARIABLE = "CARFT_DATA"
"""Taken for a `data.root` that is left out, by whoever reads the sweep file."""


def data_root(config: DataConfig, folders: Mapping[str, DataFolder]) -> Path:
    """The folder that holds the data sets. Raises RequestError when none is named or there."""
    if config.root is None:
        usual = ", ".join(folder.names[0] for folder in folders.values())
        raise RequestError(
            f"data.root: which folder holds the data sets? Give data.root, --data-root or "
            f"{VARIABLE}; {config.family} looks there for {usual}"
        )
    root = Path(config.root).expanduser().absolute()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise RequestError(f"data.root: {root} {what}; it is to hold the data sets, a folder each")
    return root


def find_folders(
    root: Path, wanted: Mapping[str, DataFolder], *, advice: str = ""
) -> dict[str, Path]:
    """Where each folder lies. Raises RequestError naming all that are missing, then `advice`."""
    found = {name: found_folder(root, folder) for name, folder in wanted.items()}
    missing = [wanted[name] for name, path in found.items() if path is None]
    if missing:
        raise RequestError("\n".join(_told(root, missing, advice)))
    return {name: path for name, path in found.items() if path is not None}


def found_folder(root: Path, folder: DataFolder) -> Path | None:
    """Where it lies; None where it is missing."""
    return next((root / name for name in folder.names if (root / name).is_dir()), None)


def missing_folder(folder: DataFolder) -> str:
    """What is said of one that is missing: its names, what it holds, where to get it."""
    others = f" (or {', '.join(folder.names[1:])})" if len(folder.names) > 1 else ""
    return (
        f"{folder.names[0]}{others} with {folder.layout}, {folder.images:,} images; "
        f"from {folder.origin}"
    )


def _told(root: Path, missing: Iterable[DataFolder], advice: str) -> Iterable[str]:
    yield f"data.root: {root} lacks folders:"
    for folder in missing:
        yield f"  {missing_folder(folder)}"
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
    """Raises RequestError for what the system cannot read meanwhile."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"data.root: {error.filename} cannot be read: {error.strerror}"
        ) from None
