"""Find and name the images that cannot be read, before runs begin."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version

from carft_sweep.carft_core.data.base import FamilyData, Split
from carft_sweep.carft_core.data.images import MEGAPIXELS
from carft_sweep.carft_core.data.listing import READ_UNASKED, join_names, refusal
from carft_sweep.carft_core.data.splits import IN_DISTRIBUTION, TRAINING_SPLITS
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json, user_cache, write_cache

LOOKED_AT = Transform(size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""The view for which an image is decoded: as small as there is."""
NAMED = 5
"""So many images are named in a sentence; a run's facts have them all."""
PART = 32
"""How many images a thread decodes at a time."""
Seen = Callable[[int], None]
"""Called with the number of images of a split that have been decoded so far."""


def bad_files(
    split: Split, digest: str, seen: Seen | None = None, *, looks: bool = True
) -> dict[str, str]:
    """Decode the images of a split and return the ids of those that cannot be read, with the error
    of each; with `looks` false nothing is decoded, and only what an earlier call found is returned.

    Every image is decoded once for each user: the result is stored in the user's cache, by the
    images' ids, the `digest` of their data, the version of Pillow and MEGAPIXELS. The whole split
    is decoded for a part of it, so that other parts cost nothing more. Raises RequestError when the
    system cannot read a file: then the disk is at fault, not the image.
    """
    whole = split.whole or split
    content = json.dumps([whole.ids, digest, version("pillow"), MEGAPIXELS])
    key = hashlib.sha256(content.encode()).hexdigest()
    file = user_cache() / "bad_files" / f"{key}.json"
    bad: dict[str, str] | None = None
    with contextlib.suppress(OSError, RequestError):
        bad = read_json(file)
    if bad is None and not looks:
        return {}
    if bad is None:
        bad = _bad_files(whole, seen)
        text = json.dumps(bad, indent=1)
        write_cache(file, lambda new: new.write_text(text, encoding="utf-8"))
    return {item: bad[item] for item in split.ids if item in bad}


def note(name: str, bad: Collection[str]) -> str:
    """Return a sentence on a split whose bad files were left out, for readers of its numbers."""
    images, were = ("image", "was") if len(bad) == 1 else ("images", "were")
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    named = ", ".join([*bad][:NAMED])
    return (
        f"{len(bad)} {images} of {name} cannot be read and {were} skipped, all numbers are of the "
        f"others: {named}{more}"
    )


def _bad_files(split: Split, seen: Seen | None) -> dict[str, str]:
    bad: dict[str, str] = {}
    rows = range(len(split))
    pieces = [rows[first : first + PART] for first in range(0, len(split), PART)]
    # Threads: Pillow lets go of Python's lock while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for piece, reasons in zip(
            pieces, pool.map(functools.partial(_wrong, split), pieces), strict=True
        ):
            bad |= {split.ids[row]: why for row, why in zip(piece, reasons, strict=True) if why}
            if seen is not None:
                seen(piece.stop)
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


def bad_files_of(
    data: FamilyData, name: str, seen: Seen | None = None, *, looks: bool = True
) -> dict[str, str]:
    """Return the unreadable images of the split `name` of `FamilyData.splits`: the error by image
    id. `seen` and `looks` are those of `bad_files`."""
    split = data.splits[name]
    is_carved = split.whole is not None and split.whole is data.train.whole
    trains = name in TRAINING_SPLITS or is_carved
    digest = data.digest_of_training if trains else data.digest
    return bad_files(split, data.digests.get(name, digest), seen, looks=looks)


def refuse_bad_files(data: FamilyData) -> None:
    """Raise RequestError that lists every image file that cannot be read. Data with more images
    than READ_UNASKED are not decoded: of these only what `data check --read` has found is known."""
    files = {name: split for name, split in data.splits.items() if split.source.decodes}
    looks = sum(map(len, files.values())) <= READ_UNASKED
    errors = [why for name in files for why in bad_files_of(data, name, looks=looks).values()]
    if errors:
        images = "1 image" if len(errors) == 1 else f"{len(errors)} images"
        title = (
            f"data.bad_files: {images} cannot be read; --set data.bad_files=skip passes over them"
        )
        raise RequestError(refusal(f"{title}:", errors))


def without_bad_files(data: FamilyData) -> FamilyData:
    """Return the data without unreadable images, each of which is named in the log. Raises
    RequestError as `without` does."""
    bad_by_split = {name: bad_files_of(data, name) for name in data.splits}
    for name, bad in bad_by_split.items():
        for item, why in bad.items():
            _LOG.warning("left out of %s: %s: %s", name, item, why)
    return without(data, {name: bad for name, bad in bad_by_split.items() if bad})


def without(data: FamilyData, skipped: Mapping[str, Mapping[str, str]]) -> FamilyData:
    """Return the data without the images that `skipped` lists by split, with a note on each split.
    Raises RequestError when a class of train, val or test is left without images (of train alone,
    where the others lack classes anyhow), or a shift, or an extra."""
    splits = dict(data.splits)
    complete = ("train",) if data.uneven else IN_DISTRIBUTION
    for name, bad in skipped.items():
        whole = splits[name]
        good = [index for index, item in enumerate(whole.ids) if item not in bad]
        splits[name] = whole.subset(good)
        gone = set(whole.labels.tolist()) - set(splits[name].labels.tolist())
        if gone and (not good or name in complete):
            names = join_names([data.class_names[label] for label in sorted(gone)])
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
