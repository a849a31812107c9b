"""Images that cannot be read are found before anything begins, and named."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from carft_core.data.base import Split, Transform
from carft_core.data.subset import whole_of
from carft_core.errors import RequestError
from carft_core.files import read_json
from carft_core.user_cache import keep, user_cache

LOOKED_AT = Transform(size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""The view for which an image is decoded: as small as there is."""
NAMED = 5
"""So many images are named in a sentence; a run's facts have them all."""
PART = 32
"""So many images are one thread's at a time."""
KEPT_EVERY = 10.0
"""Seconds after which what was found so far is kept."""

Seen = Callable[[int], None]
"""Is told how many images of a split have been looked at."""


def bad_files(split: Split, digest: str, seen: Seen | None = None) -> dict[str, str]:
    """The ids of a split's images that cannot be read, and what is wrong with each.

    Every image is decoded for this, once for each user: what was found is kept in the user's
    cache, by the images' ids, the `digest` of their data and the version of Pillow. Of a part of a
    split the whole is looked at, so that other parts of it cost nothing more. One that was
    interrupted goes on where it was. Raises RequestError when the system cannot read a file: then
    the disk is at fault, not the image.
    """
    whole = whole_of(split)
    made_of = json.dumps([whole.ids, digest, version("pillow")])
    key = hashlib.sha256(made_of.encode()).hexdigest()
    file = user_cache() / "bad_files" / f"{key}.json"
    found: dict[str, str] | None = _kept(file)
    if found is None:
        part = file.with_suffix(".part")
        found = _bad_files(whole, part, seen)
        keep(file, functools.partial(_write, found=found))
        with contextlib.suppress(OSError):
            part.unlink()
    return {item: found[item] for item in split.ids if item in found}


def note(name: str, bad: Collection[str]) -> str:
    """What people should know of a split whose bad files were left out: a sentence."""
    images, were = ("image", "was") if len(bad) == 1 else ("images", "were")
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    named = ", ".join([*bad][:NAMED])
    return (
        f"{len(bad)} {images} of {name} cannot be read and {were} skipped, all numbers are of the "
        f"others: {named}{more}"
    )


def _kept(file: Path) -> Any:
    """None where nothing was kept, or it cannot be read."""
    with contextlib.suppress(OSError, RequestError):
        return read_json(file)
    return None


def _write(file: Path, *, found: object) -> None:
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _bad_files(split: Split, part: Path, seen: Seen | None) -> dict[str, str]:
    """`part` is where it is kept how far this came and what was found, should it end too soon."""
    start, found = _begun(part)
    at, written = start, time.monotonic()
    pieces = [range(one, min(one + PART, len(split))) for one in range(start, len(split), PART)]
    # Threads: Pillow lets go of Python's lock while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for piece, told in zip(
                pieces, pool.map(lambda it: _wrong(split, it), pieces), strict=True
            ):
                named = zip(split.ids[piece.start : piece.stop], told, strict=True)
                found |= {item: why for item, why in named if why is not None}
                at = piece.stop
                if seen is not None:
                    seen(at)
                if time.monotonic() - written > KEPT_EVERY:
                    keep(part, functools.partial(_write, found=[at, found]))
                    written = time.monotonic()
        except BaseException:
            if at > start:
                keep(part, functools.partial(_write, found=[at, found]))
            raise
    return found


def _begun(part: Path) -> tuple[int, dict[str, str]]:
    """How many images were looked at before, and what was found in them."""
    match _kept(part):
        case [int(at), dict(found)]:
            return at, found
        case _:
            return 0, {}


def _wrong(split: Split, indices: Sequence[int]) -> list[str | None]:
    told: list[str | None] = []
    for index in indices:
        try:
            split.views([index], transform=LOOKED_AT, seed=None, epoch=0)
        except RequestError as error:
            cause = error.__cause__
            if isinstance(cause, MemoryError) or getattr(cause, "errno", None) is not None:
                raise
            told.append(str(error))
        else:
            told.append(None)
    return told
