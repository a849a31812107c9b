"""`carft-sweep init FOLDER`: a family file and a sweep file for a folder of images."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.table import table_lines

LISTED_CLASSES = 30
"""The most classes that are listed one by one; of more only the sums are shown."""
LISTED_TEXTS = 20


def init_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run `init`. Raises RequestError for an unusable folder."""
    from carft_sweep.sweeps.scaffold.write import write_scaffold

    folder, out = Path(arguments.folder), Path(arguments.out or ".")
    scaffold = write_scaffold(folder, out, name=arguments.name, force=arguments.force)
    if arguments.json:
        emit(json.dumps(scaffold, indent=1))
        return
    text = "\n".join(_scaffold_lines(scaffold))
    emit(text.encode("utf-8", "backslashreplace").decode())


def _scaffold_lines(scaffold: Mapping[str, Any]) -> Iterator[str]:
    yield f"{scaffold['root']}: {scaffold['layout']}"
    yield ""
    yield from _counts(scaffold["counts"], train=scaffold["train"])
    for title, texts in (
        ("Assumed:", scaffold["assumed"]),
        ("Worth a look:", scaffold["doubts"]),
        ("To be corrected before it runs:", scaffold["problems"]),
    ):
        if texts:
            yield from ("", title, *(f"  - {text}" for text in texts[:LISTED_TEXTS]))
        if len(texts) > LISTED_TEXTS:
            yield f"  and {len(texts) - LISTED_TEXTS} more"
    yield ""
    files = f"{os.path.relpath(scaffold['family'])} and {os.path.relpath(scaffold['sweep'])}"
    yield f"Wrote {files}. Next:"
    yield from (f"  {command}" for command in scaffold["next"])


def _counts(counts: Mapping[str, Mapping[str, int]], *, train: str) -> Iterator[str]:
    """Yield the lines of a table of images by class and split; of many classes only the totals.
    `train` is the folder of training images."""
    called = {} if train in (".", "train") else {"train": f"train ({train})"}
    splits = {called.get(name, name): classes for name, classes in counts.items() if classes}
    classes, every = list(counts["train"]), splits.values()
    listed = classes if len(classes) <= LISTED_CLASSES else []
    rows = [[name, *(str(images.get(name, 0)) for images in every)] for name in listed]
    rows.append(["all classes", *(str(sum(images.values())) for images in every)])
    if not listed:
        rows.append(["classes", *(str(len(images)) for images in every)])
    return table_lines(["", *splits], rows, right=[*splits])
