"""`carft-sweep data list`: what each family reads below the data root, and whether it is there."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from carft_core.data import FAMILIES, Family
from carft_core.data.base import DataConfig
from carft_core.data.folders import VARIABLE, data_root, found_folder
from carft_core.errors import RequestError, unknown
from sweeps.datasets.text import lines
from sweeps.family_file import is_family_file, place_of, register_family
from sweeps.imports import load, resolve

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError for a family that nobody knows, or no data root."""
    load(resolve(arguments.imports, Path.cwd()))
    families = [_named(text) for text in arguments.families] or list(FAMILIES.values())
    root = _root(arguments.data_root)
    if arguments.json:
        told = {
            "root": None if root is None else str(root),
            "families": [_plain(family, root) for family in families],
        }
        say(json.dumps(told, indent=1))
        return 0
    width = Console().width
    for family in families:
        for line in _lines(family, root, width):
            say(line)
        say("")
    say(f"Data root: {root or f'none; --data-root or {VARIABLE} names it'}")
    return 0


def _named(text: str) -> Family:
    if is_family_file(text):
        return register_family(Path(text).expanduser())
    if text not in FAMILIES:
        raise RequestError(unknown("family", text, FAMILIES))
    return FAMILIES[text]


def _root(given: str | None) -> Path | None:
    """`--data-root`, else CARFT_DATA; None where neither is given."""
    named = os.environ.get(VARIABLE) if given is None else json.loads(given)
    return data_root(DataConfig(root=named), {}) if named else None


def _plain(family: Family, root: Path | None) -> dict[str, Any]:
    return {
        "family": family.name,
        "summary": family.summary,
        "place": _own_place(family),
        "splits": {
            name: {
                "folders": list(folder.names),
                "layout": folder.layout,
                "origin": folder.origin,
                "images": folder.images,
                "found": found,
            }
            for (name, folder), found in zip(
                family.folders.items(), _found(family, root), strict=True
            )
        },
    }


def _own_place(family: Family) -> str | None:
    """Where a family file says that its images lie; None of other families."""
    place = place_of(DataConfig(family=family.name))
    return None if place == "builtin" else place


def _found(family: Family, root: Path | None) -> Iterator[str | None]:
    for folder in family.folders.values():
        place = None if root is None else found_folder(root, folder)
        yield None if place is None else str(place)


def _lines(family: Family, root: Path | None, width: int) -> Iterator[str]:
    yield from textwrap.wrap(f"{family.name}: {family.summary}", width, subsequent_indent="  ")
    if not family.folders:
        place = _own_place(family)
        where = "" if place is None else f"; its images lie in {place}"
        yield f"  reads nothing below the data root{where}"
        return
    there = _there(family, root)
    columns = ["split", "images", *there, "folder, and where to get it"]
    rows = []
    for name, folder in family.folders.items():
        others = f" (or {', '.join(folder.names[1:])})" if len(folder.names) > 1 else ""
        what = f"{folder.names[0]}{others}\nwith {folder.layout}, from {folder.origin}"
        rows.append([name, f"{folder.images:,}", *(told[name] for told in there.values()), what])
    for line in lines(columns, rows, width=width - 2, right=["images"]):
        yield f"  {line}"


def _there(family: Family, root: Path | None) -> Mapping[str, Mapping[str, str]]:
    """A column, where there is a root to look below."""
    if root is None:
        return {}
    found = zip(family.folders, _found(family, root), strict=True)
    return {"found": {name: "no" if place is None else "yes" for name, place in found}}
