"""Images that cannot be read are found before anything begins, and named."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from carft_core.data.base import Split, Transform
from carft_core.data.subset import whole_of
from carft_core.errors import RequestError
from carft_core.files import read_json
from carft_core.user_cache import keep, user_cache

LOOKED_AT = Transform(size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""The view for which an image is decoded: as small as there is."""
NAMED = 5
"""So many images are named in a sentence; a run's facts have them all."""
PART = 256
"""So many images are one thread's at a time."""

_LOG = logging.getLogger(__name__)


def bad_files(name: str, split: Split, digest: str) -> dict[str, str]:
    """The ids of a split's images that cannot be read, and what is wrong with each.

    Every image is decoded for this, once for each user: what was found is kept in the user's
    cache, by the images' ids, the `digest` of their data and the version of Pillow. Of a part of a
    split the whole is looked at, so that other parts of it cost nothing more. Each is named in the
    log as left out of `name`. Raises RequestError when the system cannot read a file: then the
    disk is at fault, not the image.
    """
    whole = whole_of(split)
    made_of = json.dumps([whole.ids, digest, version("pillow")])
    key = hashlib.sha256(made_of.encode()).hexdigest()
    file = user_cache() / "bad_files" / f"{key}.json"
    found = _kept(file)
    if found is None:
        found = _bad_files(whole)
        keep(file, functools.partial(_write, found=found))
    inside = {item: found[item] for item in split.ids if item in found}
    for item, why in inside.items():
        _LOG.warning("left out of %s: %s: %s", name, item, why)
    return inside


def note(name: str, bad: Collection[str]) -> str:
    """What people should know of a split whose bad files were left out: a sentence."""
    images, were = ("image", "was") if len(bad) == 1 else ("images", "were")
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    named = ", ".join([*bad][:NAMED])
    return (
        f"{len(bad)} {images} of {name} cannot be read and {were} skipped, all numbers are of the "
        f"others: {named}{more}"
    )


def _kept(file: Path) -> dict[str, str] | None:
    """None where nothing was kept, or it cannot be read."""
    with contextlib.suppress(OSError, RequestError):
        found: dict[str, str] | None = read_json(file)
        return found
    return None


def _write(file: Path, *, found: Mapping[str, str]) -> None:
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _bad_files(split: Split) -> dict[str, str]:
    parts = [range(at, min(at + PART, len(split))) for at in range(0, len(split), PART)]
    # Threads: Pillow lets go of Python's lock while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = [why for part in pool.map(lambda it: _wrong(split, it), parts) for why in part]
    return {item: why for item, why in zip(split.ids, told, strict=True) if why is not None}


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
