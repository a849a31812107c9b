"""What classes are called: by a file beside their folders, or by the folders themselves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from carft_sweep.carft_core.data.listing import join_names, nearest
from carft_sweep.carft_core.files import read_regular

CLASS_FILES = ("classes.json", "classes.txt")


MOST_NAMES = 1 << 24
"""Bytes of such a file."""


def name_files(root: Path) -> list[Path]:
    """Return the files in a folder that may list the names of its classes."""
    return [root / name for name in CLASS_FILES if (root / name).exists()]


def plain_name(folder: str) -> str:
    """Return a class's name for prompts, made of its folder: spaces for underscores."""
    return folder.replace("_", " ").strip()


def names_in(file: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the name that a file gives each class, and the file's mistakes. JSON: folder -> name,
    or a list of names of which the first counts; else a line `folder name` each. Raises OSError for
    an unreadable file."""
    try:
        text = read_regular(file, MOST_NAMES).decode("utf-8-sig")
        pairs = _json_pairs(text) if file.suffix == ".json" else _text_pairs(text)
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
        if not isinstance(name, str) or not name.strip() or re.search("[\ud800-\udfff]", name):
            raise ValueError(f"the name of {folder!r} must be text, or a list of texts")
        named.append((folder, name.strip()))
    return named


def _text_pairs(text: str) -> list[tuple[str, str]]:
    """Return (folder, name) pairs of lines of a folder, white space and its name; a tab, if any,
    separates the two."""
    named = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        folder, _, name = line.strip().partition("\t" if "\t" in line.strip() else " ")
        if not name.strip():
            raise ValueError(f"line {number} has no name after the folder {folder!r}")
        named.append((folder.strip(), name.strip()))
    return named


def repeated(names: Mapping[str, str], where: str = "classes.json") -> list[str]:
    """Return a message for each name that several classes have, which a text tower could not tell
    apart; `where` names are given."""
    folders: dict[str, list[str]] = {}
    for folder, name in names.items():
        folders.setdefault(name, []).append(folder)
    return [
        f"the classes {join_names(same)} have one name, {name!r}; give each its own in {where}"
        for name, same in folders.items()
        if len(same) > 1 and name
    ]
