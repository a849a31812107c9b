"""`carft-sweep init DIR`: a first family file and sweep file for a folder of images."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sweeps.starting.started import Started, start

Say = Callable[[str], None]
MOST_CLASSES = 30
"""Listed one by one; of more only the sums are told."""
MOST_TOLD = 20


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError when the folder cannot be used."""
    out = Path(arguments.out or ".")
    done = start(Path(arguments.folder), out, name=arguments.name, force=arguments.force)
    if arguments.json:
        say(json.dumps(done.as_dict(), indent=1))
        return 0
    for line in _lines(done):
        say(line.encode("utf-8", "backslashreplace").decode())
    return 0


def _lines(done: Started) -> Iterator[str]:
    yield f"{done.root}: {done.layout}"
    yield ""
    yield from _counts(done)
    yield from _told("Assumed:", done.assumed)
    yield from _told("Worth a look:", done.doubts)
    yield from _told("Has to be mended before it runs:", done.mend)
    yield ""
    yield f"Wrote {os.path.relpath(done.family)} and {os.path.relpath(done.sweep)}. Next:"
    for command in done.next:
        yield f"  {command}"


def _counts(done: Started) -> Iterator[str]:
    splits = {name: classes for name, classes in done.counts.items() if classes}
    classes = list(done.counts["train"])
    named = classes if len(classes) <= MOST_CLASSES else []
    first = max(map(len, ["all classes", *named]))
    widths = {name: max(len(name), 6) for name in splits}
    yield " ".join([" " * first, *(f"{name:>{widths[name]}}" for name in splits)])
    for one in named:
        cells = (f"{found.get(one, 0):>{widths[name]}}" for name, found in splits.items())
        yield " ".join([f"{one:<{first}}", *cells])
    sums = (f"{sum(found.values()):>{widths[name]}}" for name, found in splits.items())
    yield " ".join([f"{'all classes':<{first}}", *sums])
    if not named:
        kinds = (f"{len(found):>{widths[name]}}" for name, found in splits.items())
        yield " ".join([f"{'classes':<{first}}", *kinds])


def _told(title: str, texts: Sequence[str]) -> Iterator[str]:
    if not texts:
        return
    yield ""
    yield title
    for text in texts[:MOST_TOLD]:
        yield f"  - {text}"
    if len(texts) > MOST_TOLD:
        yield f"  and {len(texts) - MOST_TOLD} more"
