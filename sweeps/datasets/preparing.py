"""`carft-sweep data prepare FAMILY`: what is slow once, done ahead of the first run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from carft_core.data import FamilyData, open_whole
from carft_core.data.splits import bad_files_of, without
from carft_core.errors import RequestError
from carft_core.files import user_cache
from sweeps.datasets.chosen import chosen
from sweeps.datasets.text import lines
from sweeps.progress import duration, to_stderr

Say = Callable[[str], None]
NAMED = 50
"""So many images are named one by one; JSON has them all."""


@dataclass(frozen=True)
class Looked:
    """A split of which every image was decoded."""

    images: int
    bad: Mapping[str, str]
    """The ids of those that cannot be read, and what is wrong with each."""
    seconds: float | None
    """None: it was known from an earlier time."""


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError when the data cannot be used, whole images or not."""
    config = chosen(arguments)
    began = time.monotonic()
    data = open_whole(config)
    listed = time.monotonic() - began
    looked = _look(data)
    refusal = _refusal(data, looked)
    if arguments.json:
        say(json.dumps(_plain(config.family, data, looked, listed, refusal), indent=1))
    else:
        for line in _lines(config.family, data, looked, listed, refusal):
            say(line)
    if refusal is not None:
        raise RequestError(refusal)
    return 0


def _look(data: FamilyData) -> dict[str, Looked]:
    """Decode every image, with a bar on a terminal and a line for each split elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    looked = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        for name, split in data.splits.items():
            # Of a part the whole is looked at, once for all its parts.
            every = len(split.whole or split)
            task = shown.add_task(name, total=every)
            began, seen = time.monotonic(), 0

            def tell(count: int, task: Any = task) -> None:
                nonlocal seen
                seen = count
                shown.update(task, completed=count)

            bad = bad_files_of(data, name, tell)
            seconds = time.monotonic() - began if seen else None
            shown.update(task, completed=every)
            looked[name] = Looked(len(split), bad, seconds)
            if not console.is_terminal:
                to_stderr(f"{name}: {len(split):,} images, {len(bad):,} cannot be read")
    return looked


def _refusal(data: FamilyData, looked: Mapping[str, Looked]) -> str | None:
    """Why not even `data.bad_files: skip` could use them."""
    try:
        without(data, {name: found.bad for name, found in looked.items() if found.bad})
    except RequestError as error:
        return str(error)
    return None


def _plain(
    family: str,
    data: FamilyData,
    looked: Mapping[str, Looked],
    listed: float,
    refusal: str | None,
) -> dict[str, Any]:
    return {
        "family": family,
        "digest": data.digest,
        "listing_seconds": round(listed, 3),
        "splits": {
            name: {
                "images": found.images,
                "bad": dict(found.bad),
                "seconds": None if found.seconds is None else round(found.seconds, 3),
            }
            for name, found in looked.items()
        },
        "cache": str(user_cache()),
        "refusal": refusal,
    }


def _lines(
    family: str,
    data: FamilyData,
    looked: Mapping[str, Looked],
    listed: float,
    refusal: str | None,
) -> Iterator[str]:
    yield f"{family}: listed in {_time(listed)}, digest {data.digest[:8]}"
    rows = [
        [
            name,
            f"{found.images:,}",
            f"{len(found.bad):,}",
            "known already" if found.seconds is None else _time(found.seconds),
        ]
        for name, found in looked.items()
    ]
    columns = ["split", "images", "cannot be read", "looked at in"]
    yield from lines(columns, rows, right=columns[1:3])
    bad = [f"{item}: {why}" for found in looked.values() for item, why in found.bad.items()]
    yield from (f"! {text}" for text in bad[:NAMED])
    if len(bad) > NAMED:
        yield f"  and {len(bad) - NAMED:,} more; --json names them all"
    yield _verdict(looked, len(bad), refusal)
    yield f"Kept in {user_cache()}: later starts list and look at only what has changed."


def _verdict(looked: Mapping[str, Looked], bad: int, refusal: str | None) -> str:
    if not bad:
        return "Every image can be read."
    if refusal is not None:
        return "A run refuses these data, with data.bad_files: skip as well."
    left = ", ".join(
        f"{found.images - len(found.bad):,} of {found.images:,} in {name}"
        for name, found in looked.items()
        if found.bad
    )
    return (
        "A run ends at the first of them. Mend them, or say data.bad_files: skip, which leaves "
        f"{left}, and says so above every table."
    )


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
