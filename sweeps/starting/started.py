"""A folder of images looked at, and the two files written that begin with it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carft_core.data import FAMILIES
from carft_core.errors import RequestError
from carft_core.files import write_atomically
from carft_core.registry import NAME
from sweeps.starting.doubts import doubts, sizes
from sweeps.starting.files import family_text, sweep_text
from sweeps.starting.folders import look
from sweeps.starting.layout import recognise
from sweeps.starting.names import family_name
from sweeps.starting.survey import survey


@dataclass(frozen=True)
class Started:
    """What was found, and what was written."""

    family: Path
    sweep: Path
    layout: str
    root: Path
    counts: Mapping[str, Mapping[str, int]]
    """Split -> class -> images; `train` with what is carved from it."""
    assumed: tuple[str, ...]
    doubts: tuple[str, ...]
    mend: tuple[str, ...]
    """What only the owner of the images can change, and `check` refuses."""

    @property
    def next(self) -> tuple[str, str]:
        """The commands that go on from here."""
        shown = os.path.relpath(self.sweep)
        return f"carft-sweep check {shown}", f"carft-sweep run {shown}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(self).items()
        }
        return {**plain, "next": list(self.next)}


def start(images: Path, out: Path, *, name: str | None = None, force: bool = False) -> Started:
    """Look at the folder `images`, and write `<name>.family.yaml` and `<name>.yaml` into `out`.

    Raises RequestError for a folder that is not there, whose layout nobody knows, or when a file
    is there already and `force` is not given.
    """
    images, out = images.expanduser().absolute(), out.expanduser().absolute()
    if not images.is_dir():
        what = "is not a folder" if images.exists() else "does not exist"
        raise RequestError(f"{images} {what}; `init` wants a folder of images")
    try:
        top = look(images)
        found = survey(recognise(top, images))
    except OSError as error:
        raise RequestError(f"{error.filename} cannot be read: {error.strerror}") from None
    named = _name(name, images)
    family, sweep = out / f"{named}.family.yaml", out / f"{named}.yaml"
    seen = sizes(found)
    file = found.class_names_file
    texts = {
        family: family_text(
            found,
            named,
            _shown(found.layout.root, out),
            sweep.name,
            "" if file is None else _shown(file, out),
        ),
        sweep: sweep_text(found, named, family.name, seen.median),
    }
    _write(texts, force=force)
    return Started(
        family=family,
        sweep=sweep,
        layout=found.layout.kind,
        root=found.layout.root,
        counts={
            split: {one: len(files) for one, files in listing.items()}
            for split, listing in found.splits.items()
        },
        assumed=tuple(found.layout.assumed),
        doubts=tuple(doubts(found, top, seen)),
        mend=tuple(found.mend),
    )


def _name(given: str | None, images: Path) -> str:
    """Raises RequestError for a name that no family can have."""
    taken = [family.name for family in FAMILIES.values() if not hasattr(family.open, "__self__")]
    if given is None:
        return family_name(images.name, taken)
    if not NAME.fullmatch(given) or given in taken:
        why = "is a family already" if given in taken else "is no name for a family"
        raise RequestError(
            f"--name {given} {why}: lower-case letters, digits and '_', beginning with a letter"
        )
    return given


def _shown(path: Path, out: Path) -> str:
    """Relative when it lies below the files that are written, so that both can move together."""
    return str(path.relative_to(out)) if path.is_relative_to(out) else str(path)


def _write(texts: Mapping[Path, str], *, force: bool) -> None:
    there = [path.name for path in texts if path.exists()]
    if there and not force:
        folder = next(iter(texts)).parent
        raise RequestError(
            f"{' and '.join(there)} {'are' if len(there) > 1 else 'is'} in {folder} already; "
            "--force writes anew, --name and --out write elsewhere"
        )
    for path, text in texts.items():
        write_atomically(path, functools.partial(_fill, text=text))


def _fill(file: Path, *, text: str) -> None:
    file.write_text(text, encoding="utf-8")
