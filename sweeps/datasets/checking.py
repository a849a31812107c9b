"""`carft-sweep data check FAMILY`: what is there of it, and everything that is wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from carft_core.data.base import FoundSplit
from carft_core.data.survey import Survey, survey
from carft_core.errors import RequestError
from sweeps.datasets.chosen import chosen
from sweeps.datasets.saved import (
    FORMAT,
    Saved,
    against_lines,
    compared,
    read_saved,
    unexpected,
)
from sweeps.datasets.text import lines
from sweeps.family_file import place_of

Say = Callable[[str], None]
SHOWN = 8
"""So many characters of a digest stand in the table."""


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError, after the table, when a run would refuse the data, or
    they are not those that are expected.
    """
    config = chosen(arguments)
    file = None if arguments.against is None else Path(arguments.against)
    saved = None if file is None else read_saved(file, config.family)
    found = survey(config)
    wrong = [] if found.refusal is None else [found.refusal]
    if arguments.expect is not None:
        wrong += filter(None, [unexpected(found, arguments.expect)])
    if saved is not None and file is not None:
        others = sorted({*compared(found.splits, saved).values()} - {"equal"})
        wrong += [f"--against: the data are not those of {file}: {', '.join(others)}"] * bool(
            others
        )
    if arguments.json:
        say(json.dumps(_plain(found, saved), indent=1))
    else:
        for line in _lines(found):
            say(line)
        if saved is not None and file is not None:
            for line in against_lines(found, saved, file):
                say(line)
    if wrong:
        raise RequestError("\n".join(wrong))
    return 0


def _plain(found: Survey, saved: Saved | None) -> dict[str, Any]:
    told = {
        "format": FORMAT,
        "family": found.config.family,
        "root": place_of(found.config),
        "digest": None if found.data is None else found.data.digest,
        "splits": {
            name: {
                "status": split.status,
                "folder": None if split.folder is None else str(split.folder),
                "images": split.images,
                "published": split.published,
                "classes": split.classes,
                "expected_classes": split.expected_classes,
                "digest": split.digest,
                "problems": list(split.problems),
            }
            for name, split in found.splits.items()
        },
        "notes": [] if found.data is None else list(found.data.notes),
        "refusal": found.refusal,
        "usable_shifts": None if found.usable is None else list(found.usable),
    }
    return told if saved is None else {**told, "against": compared(found.splits, saved)}


def _lines(found: Survey) -> Iterator[str]:
    place = place_of(found.config)
    yield f"{found.config.family}{'' if place == 'builtin' else f' in {place}'}"
    columns = ["split", "images", "published", "classes", "digest", "status"]
    rows = [_row(name, split) for name, split in found.splits.items()]
    head, *body = lines(columns, rows, right=columns[1:4])
    yield head
    for line, (name, split) in zip(body, found.splits.items(), strict=True):
        yield line
        yield from _folder(name, split, Path(place))
    if found.data is not None:
        yield f"digest {found.data.digest}"
        if "val" not in found.splits and found.data.val is not None:
            share = f"data.val_fraction {found.config.val_fraction:g}"
            yield f"{len(found.data.val):,} images of train become id/val ({share})"
        yield from (f"! {note}" for note in found.data.notes)
    if found.usable is not None:
        choice = f"data.shifts=[{', '.join(found.usable)}]"
        yield f"What is whole can be used: --set '{choice}', or in the sweep file"
        yield f"  data: {{family: {found.config.family}, shifts: [{', '.join(found.usable)}]}}"


def _row(name: str, split: FoundSplit) -> list[str]:
    classes = _number(split.classes)
    if split.classes is not None and split.expected_classes is not None:
        classes = f"{split.classes}/{split.expected_classes}"
    return [
        name,
        _number(split.images),
        _number(split.published),
        classes,
        (split.digest or "")[:SHOWN],
        split.status,
    ]


def _folder(name: str, split: FoundSplit, place: Path) -> Iterator[str]:
    """The folder, where it is called otherwise than the split."""
    if split.folder is not None:
        inside = split.folder.is_relative_to(place)
        folder = str(split.folder.relative_to(place) if inside else split.folder)
        if folder != name:
            yield f"  {folder}"


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"
