"""The data root: there, readable, and which families find their folders in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sweeps.doctor.base import Asked, Check, Finding, ok, warning, wrong


def _root(_: Asked) -> Iterator[Finding]:
    from carft_core.data import FAMILIES
    from carft_core.data.folders import VARIABLE, found_folder

    named = os.environ.get(VARIABLE)
    if not named:
        yield ok(f"{VARIABLE} is not set; icon_shift needs none")
        return
    root = Path(named).expanduser().absolute()
    if not root.is_dir():
        yield wrong(f"{VARIABLE}: {root} is no folder")
        return
    if not os.access(root, os.R_OK | os.X_OK):
        yield wrong(f"{VARIABLE}: {root} cannot be read")
        return
    there = [
        family.name
        for family in FAMILIES.values()
        if any(found_folder(root, folder) for folder in family.folders.values())
    ]
    if there:
        yield ok(f"{root} has folders of {', '.join(there)}")
    else:
        yield warning(f"{root} has no folder that a family reads")


CHECKS = (
    Check(
        "data.root",
        "the folder that CARFT_DATA names, and whose families' folders are in it",
        "carft-sweep data list says what is expected where",
        _root,
        seconds=60.0,
    ),
)
