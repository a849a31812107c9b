"""Images that cannot be read are found before anything begins, and named."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

from carft_core.data.base import Split, Transform
from carft_core.errors import RequestError
from carft_core.files import read_json, write_json
from carft_core.user_cache import user_cache

LOOKED_AT = Transform(size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""The view for which an image is decoded: as small as there is."""
PART = 256
"""So many images are one thread's at a time."""

_LOG = logging.getLogger(__name__)


def bad_files(splits: Mapping[str, Split], digest: str) -> dict[str, dict[str, str]]:
    """By split, if it has any: the ids of images that cannot be read, and what is wrong with each.

    Every image is decoded for this, once for each user: what was found is kept in the user's
    cache, by the data's `digest` and the version of Pillow. Each is named in the log. Raises
    RequestError when the system cannot read a file: then the disk is at fault, not the image.
    """
    sizes = {name: len(split) for name, split in splits.items()}
    made_of = json.dumps([digest, sizes, version("pillow")])
    key = hashlib.sha256(made_of.encode()).hexdigest()
    file = user_cache() / "bad_files" / f"{key}.json"
    found: dict[str, dict[str, str]] | None = read_json(file)
    if found is None:
        looked_at = {name: _bad_files(split) for name, split in splits.items()}
        found = {name: bad for name, bad in looked_at.items() if bad}
        write_json(file, found)
    for name, bad in found.items():
        for item, why in bad.items():
            _LOG.warning("left out of %s: %s: %s", name, item, why)
    return found


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
