"""Images that cannot be read are found before anything begins, and named."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.data.base import FamilyData, Split
from carft_sweep.carft_core.data.images import MEGAPIXELS
from carft_sweep.carft_core.data.listing import listed
from carft_sweep.carft_core.data.splits import IN_DISTRIBUTION, TRAINING_SPLITS
from carft_sweep.carft_core.data.views import Transform
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import keep, read_json, user_cache

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
    cache, by the images' ids, the `digest` of their data, the version of Pillow and what is
    decoded at most. Of a part of a split the whole is looked at, so that other parts of it cost
    nothing more. One that was interrupted goes on where it was. Raises RequestError when the system
    cannot read a file: then the disk is at fault, not the image.
    """
    whole = split.whole or split
    content = json.dumps([whole.ids, digest, version("pillow"), MEGAPIXELS])
    key = hashlib.sha256(content.encode()).hexdigest()
    file = user_cache() / "bad_files" / f"{key}.json"
    bad: dict[str, str] | None = _kept(file)
    if bad is None:
        part = file.with_suffix(".part")
        bad = _bad_files(whole, part, seen)
        _keep(file, bad)
        with contextlib.suppress(OSError):
            part.unlink()
    return {item: bad[item] for item in split.ids if item in bad}


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


def _keep(file: Path, content: object) -> None:
    text = json.dumps(content, indent=1)
    keep(file, lambda new: new.write_text(text, encoding="utf-8"))


def _bad_files(split: Split, part: Path, seen: Seen | None) -> dict[str, str]:
    """`part` is where it is kept how far this came and what was found, should it end too soon."""
    match _kept(part):
        case [int(start), dict(bad)]:
            pass
        case _:
            start, bad = 0, {}
    at, written = start, time.monotonic()
    rows = range(len(split))
    pieces = [rows[first : first + PART] for first in range(start, len(split), PART)]
    # Threads: Pillow lets go of Python's lock while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for piece, reasons in zip(
                pieces, pool.map(lambda it: _wrong(split, it), pieces), strict=True
            ):
                bad |= {split.ids[row]: why for row, why in zip(piece, reasons, strict=True) if why}
                at = piece.stop
                if seen is not None:
                    seen(at)
                if time.monotonic() - written > KEPT_EVERY:
                    _keep(part, [at, bad])
                    written = time.monotonic()
        except BaseException:
            if at > start:
                _keep(part, [at, bad])
            raise
    return bad


def _wrong(split: Split, indices: Sequence[int]) -> list[str | None]:
    reasons: list[str | None] = []
    for index in indices:
        try:
            split.views([index], transform=LOOKED_AT, seed=None, epoch=0)
        except RequestError as error:
            cause = error.__cause__
            if isinstance(cause, MemoryError) or getattr(cause, "errno", None) is not None:
                raise
            reasons.append(str(error))
        else:
            reasons.append(None)
    return reasons


_LOG = logging.getLogger(__name__)


def bad_files_of(data: FamilyData, name: str, seen: Seen | None = None) -> dict[str, str]:
    """Those of one split, named as in `FamilyData.splits`, as `bad_files` finds and keeps them."""
    digest = data.digest_of_training if name in TRAINING_SPLITS else data.digest
    return bad_files(data.splits[name], data.digests.get(name, digest), seen)


def without_bad_files(data: FamilyData) -> FamilyData:
    """The same without images that cannot be read, each of which is named in the log.

    Raises RequestError as `without` does.
    """
    bad_by_split = {name: bad_files_of(data, name) for name in data.splits}
    for name, bad in bad_by_split.items():
        for item, why in bad.items():
            _LOG.warning("left out of %s: %s: %s", name, item, why)
    return without(data, {name: bad for name, bad in bad_by_split.items() if bad})


def without(data: FamilyData, skipped: Mapping[str, Mapping[str, str]]) -> FamilyData:
    """The same without some images by split, which stand in `skipped` and in the notes.

    Raises RequestError when a class of train, val or test is left without images (of train alone,
    where the others lack classes anyhow), or a shift, or an extra.
    """
    splits = dict(data.splits)
    complete = ("train",) if data.uneven else IN_DISTRIBUTION
    for name, bad in skipped.items():
        whole = splits[name]
        good = [index for index, item in enumerate(whole.ids) if item not in bad]
        splits[name] = whole.subset(good)
        gone = set(whole.labels.tolist()) - set(splits[name].labels.tolist())
        if gone and (not good or name in complete):
            names = listed([data.class_names[label] for label in sorted(gone)])
            why = next(iter(bad.values()))
            raise RequestError(
                f"data.bad_files: {name} has no image of {names} that is whole: {why}"
            )
    return replace(
        data,
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        shifts={name: splits[f"shifts/{name}"] for name in data.shifts},
        extras={name: splits[f"extras/{name}"] for name in data.extras},
        skipped=skipped,
        notes=(*data.notes, *(note(name, bad) for name, bad in skipped.items())),
    )
