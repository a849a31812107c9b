"""Images that cannot be read are found before anything begins, and named."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

from carft_core.data.base import Split, Transform
from carft_core.errors import RequestError
from carft_core.files import read_json, write_json
from carft_core.user_cache import user_cache

LOOKED_AT = Transform(size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""The view for which an image is decoded: as small as there is."""

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
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = pool.map(lambda index: _wrong(split, index), range(len(split)))
        return {split.ids[index]: why for index, why in enumerate(told) if why is not None}


def _wrong(split: Split, index: int) -> str | None:
    try:
        split.views([index], transform=LOOKED_AT, seed=None, epoch=0)
    except RequestError as error:
        if getattr(error.__cause__, "errno", None) is not None:
            raise
        return str(error)
    return None
