"""The names of classes: from a file beside their folders, or from the folders' own names."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from carft_sweep.carft_core.data.listing import is_text, join_names, nearest
from carft_sweep.carft_core.files import read_regular

CLASS_FILE = "classes.json"
"""The file beside a data set's folders that says what its classes are called."""
MOST_NAMES = 1 << 24
"""The most bytes that such a file may have."""
LISTS = Path(__file__).parent / "classes"
"""The classes of published data sets, a line each; sources are in each folder's README."""


@functools.cache
def class_list(name: str) -> tuple[str, ...]:
    """Return the lines of one of the package's lists of classes, such as `domainbed/pacs`."""
    return tuple((LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def plain_name(folder: str) -> str:
    """Return a class's name for prompts, made of its folder: spaces for underscores."""
    return folder.replace("_", " ").strip()


def names_in(file: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the name that a JSON file gives each class, and the file's mistakes. The file maps
    folders to names, or to lists of names of which the first counts. Raises OSError for an
    unreadable file."""
    try:
        pairs = _json_pairs(read_regular(file, MOST_NAMES).decode("utf-8-sig"))
    except ValueError as error:
        return (), [f"{file.name}: {error}"]
    except RecursionError:
        return (), [f"{file.name}: nested too deeply"]
    names = dict(pairs)
    counts = Counter(folder for folder, _ in pairs)
    problems = [f"{file.name} names {f!r} twice" for f, count in counts.items() if count > 1]
    missing = [folder for folder in classes if not names.get(folder)]
    for folder in missing[:3]:
        near = nearest(folder, [name for name in names if name not in classes])
        problems.append(f"{file.name} has no name for the class folder {folder!r}{near}")
    if len(missing) > 3:
        problems.append(f"{file.name} lacks {len(missing) - 3} more class folders")
    chosen = {folder: names.get(folder, "") for folder in classes}
    return tuple(chosen.values()), [*problems, *repeated(chosen)]


def _json_pairs(text: str) -> list[tuple[str, str]]:
    """Return (folder, name) pairs of a JSON mapping. Raises ValueError for anything else."""
    pairs = json.loads(text, object_pairs_hook=list)
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError("must be one mapping of class folders to names")
    named = []
    for folder, value in pairs:
        name = value[0] if isinstance(value, list) and value else value
        # JSON can spell half a pair of surrogates, which is no text that anything can write.
        if not isinstance(name, str) or not name.strip() or not is_text(name):
            raise ValueError(f"the name of {folder!r} must be text, or a list of texts")
        named.append((folder, name.strip()))
    return named


def repeated(names: Mapping[str, str], where: str = "classes.json") -> list[str]:
    """Return a message for each name that several classes share, which a text tower could not tell
    apart; `where` is the file that gives the names."""
    folders: dict[str, list[str]] = {}
    for folder, name in names.items():
        folders.setdefault(name, []).append(folder)
    return [
        f"the classes {join_names(same)} have one name, {name!r}; give each its own in {where}"
        for name, same in folders.items()
        if len(same) > 1 and name
    ]
