"""What lies in a tree of class folders, in a fixed order, and everything that is wrong in it."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carft_core.data.shards import ShardIndex, indexed, shards_in

# torchvision's IMG_EXTENSIONS; its module would import every data set that it knows.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "test")
REQUIRED = ("train", "test")
LISTED_AT_MOST = 8
PROBLEMS_SHOWN = 20
CLASS_FILES = ("classes.json", "classes.txt")

Listing = Mapping[str, Mapping[str, int]]
"""Class folder -> path below the root -> size in bytes, in the order of the paths."""


@dataclass(frozen=True)
class Tree:
    """The splits of a tree: `train`, `val`, `test`, `shifts/<name>`, those that are there."""

    classes: tuple[str, ...]
    """Train's class folders, sorted (labels of shards that are numbers, by number); a label is an
    index into them."""
    splits: Mapping[str, Listing]
    problems: Sequence[str]
    shards: Mapping[str, ShardIndex] = field(default_factory=dict)
    """Of the splits that are tar shards; the others are class folders."""


def read_tree(root: Path) -> Tree:
    """List a tree and its mistakes. Raises OSError for what cannot be read."""
    problems: list[str] = []
    found = visible_folders(root)
    shifts = visible_folders(root / "shifts") if "shifts" in found else []
    names = [*(name for name in SPLITS if name in found), *(f"shifts/{name}" for name in shifts)]
    shards = {
        name: indexed(root, name, EXTENSIONS, problems) for name in names if shards_in(root / name)
    }
    splits = {
        name: _labelled(root, name, shards[name], problems)
        if name in shards
        else _listing(root, name, problems)
        for name in names
    }
    problems = [*_misnamed(found), *problems]
    return Tree(tuple(splits.get("train", ())), splits, problems, shards)


def class_names(root: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """What prompts call each class, and what is wrong with that.

    From `classes.json` or `classes.txt` when there is one, else as `plain_name` says.
    """
    files = name_files(root)
    if len(files) > 1:
        return (), ["classes.json and classes.txt are both there; keep one of them"]
    if not files:
        names = {folder: plain_name(folder) for folder in classes}
        return tuple(names.values()), repeated(names)
    return names_in(files[0], classes)


def listing_digest(listing: Listing) -> str:
    """sha256 over every image's class, path and size in bytes; none is read."""
    digest = hashlib.sha256(b"split/1\n")
    for folder in sorted(listing):
        for path, size in sorted(listing[folder].items()):
            digest.update(f"{folder}\0{path}\0{size}\n".encode())
    return digest.hexdigest()


def name_files(root: Path) -> list[Path]:
    """The files in a folder that say what its classes are called."""
    return [root / name for name in CLASS_FILES if (root / name).exists()]


def plain_name(folder: str) -> str:
    """What prompts call a class of which nobody says more: spaces for underscores."""
    return folder.replace("_", " ").strip()


def names_in(file: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """What a file calls each class, and what is wrong with that.

    JSON: folder -> name, or a list of names of which the first counts; else a line `folder name`
    each. Raises OSError when it cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        pairs = _json_pairs(text) if file.suffix == ".json" else _text_pairs(text)
    except ValueError as error:
        return (), [f"{file.name}: {error}"]
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


def nearest(name: str, allowed: Collection[str]) -> str:
    """`; did you mean 'cat'?` when an allowed name is like this one."""
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - LISTED_AT_MOST
    return ", ".join(names[:LISTED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def refusal(title: str, problems: Sequence[str]) -> str:
    """A message with the first problems, each in its line."""
    shown = [f"  {problem}" for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        shown.append(f"  and {len(problems) - PROBLEMS_SHOWN} more")
    return "\n".join([title, *shown])


def visible_folders(folder: Path) -> list[str]:
    """The names of its folders that do not begin with a dot, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _misnamed(found: Sequence[str]) -> Iterator[str]:
    """Splits that are missing, and folders that look like one under another name."""
    others = [name for name in found if name not in (*SPLITS, "shifts")]
    for name in (*SPLITS, "shifts"):
        if name in found:
            continue
        like = [o for o in others if o.lower().startswith(name)]
        like += difflib.get_close_matches(name, others, n=1, cutoff=0.75)
        if name in REQUIRED:
            yield f"{name}/ is missing" + (f"; is it {like[0]}/?" if like else "")
        elif like:
            yield (
                f"{like[0]}/ is not read, and there is no {name}/; rename it to {name}/, or "
                f"to .{like[0]}/ if it is to be left out"
            )


def _listing(root: Path, name: str, problems: list[str]) -> dict[str, dict[str, int]]:
    """The images of one split by class folder."""
    folders = visible_folders(root / name)
    if not folders:
        problems.append(f"{name}/ {no_class_folders(root / name)}")
    listing = {
        folder: dict(sorted(images(root, f"{name}/{folder}", problems))) for folder in folders
    }
    empty = [folder for folder, found in listing.items() if not found]
    if empty:
        problems.append(f"{name}/ has class folders without images: {listed(empty)}")
    return listing


def no_class_folders(folder: Path) -> str:
    """What to say of a split that has none."""
    loose = has_loose_images(folder)
    return "has no class folders" + ("; its images lie outside them" if loose else "")


def has_loose_images(folder: Path) -> bool:
    """Whether images lie right in a folder."""
    return any(file.name.lower().endswith(EXTENSIONS) for file in folder.iterdir())


def _labelled(
    root: Path, name: str, index: ShardIndex, problems: list[str]
) -> dict[str, dict[str, int]]:
    """The images of a split in shards, by label as if that were their folder."""
    if folders := visible_folders(root / name):
        problems.append(f"{name}/ has shards and folders ({listed(folders)}): keep one of them")
    listing: dict[str, dict[str, int]] = {}
    for image, label, size in zip(index.ids, index.labels, index.places[:, 2], strict=True):
        listing.setdefault(label, {})[image] = int(size)
    if not listing:
        problems.append(f"{name}/ has shards without images")
    numbers = bool(listing) and all(label.isdecimal() for label in listing)
    if numbers and not name_files(root):
        problems.append(f"{name}/ has numbers as labels: classes.json must say what they mean")
    order = sorted(listing, key=int if numbers else None)
    return {label: dict(sorted(listing[label].items())) for label in order}


def images(
    root: Path, below: str, problems: list[str], above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, int]]:
    """(path below the root, size) of every visible image in a folder, at any depth."""
    status = (root / below).stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        problems.append(f"{below}/ is a link to a folder that it lies in")
        return
    with os.scandir(root / below) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        path = f"{below}/{entry.name}"
        if entry.is_dir():
            yield from images(root, path, problems, (*above, here))
        elif not entry.name.lower().endswith(EXTENSIONS):
            continue
        elif not entry.is_file():
            problems.append(f"{path} is a link to nothing")
        elif (size := entry.stat().st_size) == 0:
            problems.append(f"{path} is empty")
        elif not is_text(path):
            problems.append(f"{path!r} is not a name in UTF-8; rename it")
        else:
            yield path, size


def is_text(name: str) -> bool:
    """Whether a name on disk is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_pairs(text: str) -> list[tuple[str, str]]:
    """Raises ValueError for what is not a mapping of folders to names."""
    pairs = json.loads(text, object_pairs_hook=list)
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError("must be one mapping of class folders to names")
    named = []
    for folder, value in pairs:
        name = value[0] if isinstance(value, list) and value else value
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the name of {folder!r} must be text, or a list of texts")
        named.append((folder, name.strip()))
    return named


def _text_pairs(text: str) -> list[tuple[str, str]]:
    """Lines of a folder, white space and its name; a tab divides them if there is one."""
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
    """Classes, by folder, that a text tower could not tell apart; `where` names are given."""
    folders: dict[str, list[str]] = {}
    for folder, name in names.items():
        folders.setdefault(name, []).append(folder)
    return [
        f"the classes {listed(same)} have one name, {name!r}; give each its own in {where}"
        for name, same in folders.items()
        if len(same) > 1 and name
    ]
