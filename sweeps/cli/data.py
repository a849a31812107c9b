"""The commands on data sets: data list, data check, data prepare."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from carft_core.config import trial_config
from carft_core.data import FAMILIES, Family, FamilyData, open_whole
from carft_core.data.base import DataConfig, FoundSplit
from carft_core.data.folders import VARIABLE, data_root, found_folder
from carft_core.data.splits import bad_files_of, without
from carft_core.data.survey import Survey, survey
from carft_core.errors import InvalidConfig, Problem, RequestError, unknown
from carft_core.files import read_json, user_cache
from sweeps.cli.parser import keys
from sweeps.scheduler.progress import duration, to_stderr
from sweeps.spec.document import COMMAND_LINE, Place, SpecDocument, parse
from sweeps.spec.normalize import apply
from sweeps.spec.spec import from_environment
from sweeps.spec.user_code import (
    import_all,
    is_family_file,
    load,
    name_families,
    place_of,
    register_family,
    resolve,
)

WIDEST = 400


def lines(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    width: int = WIDEST,
    right: Sequence[str] = (),
) -> Iterator[str]:
    """A table, whose columns in `right` are numbers; only the last column wraps, between words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column != columns[-1],
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    written = io.StringIO()
    Console(file=written, width=width, color_system=None).print(table)
    yield from (line.rstrip() for line in written.getvalue().splitlines())


_FAMILY = ("trial", "data", "family")


def chosen(arguments: argparse.Namespace) -> DataConfig:
    """As a sweep file with the same `data` has it: the options, CARFT_DATA, the family's defaults.

    Raises InvalidConfig with every mistake at once.
    """
    family: str = arguments.family
    overrides = [*arguments.overrides, *(f"{key}={it}" for key, it in keys(arguments).items())]
    document = SpecDocument(parse("{}"), "data")
    import_all(document, Path.cwd(), arguments.imports)
    document.set(_FAMILY, family, Place(COMMAND_LINE - 1, family))
    for index, override in enumerate(overrides):
        key = override.partition("=")[0].strip().removeprefix("trial.")
        if not key.startswith("data.") or key == "data.family":
            place = Place(COMMAND_LINE + index, f"--set {override[:60]}")
            document.add_error_at(
                place, "only fields of data count here, such as data.shifts=[v2,r]"
            )
    apply(document, overrides)
    name_families(document, Path.cwd())
    document.raise_errors()
    apply(document, from_environment(document))
    try:
        return trial_config({"data": document.get(_FAMILY[:2]), "algorithm": "fine_tune"}).data
    except InvalidConfig as error:
        raise InvalidConfig(
            Problem((), f"{document.place(('trial', *problem.path)).text}: {problem}")
            for problem in error.problems
        ) from None


Say = Callable[[str], None]


def list_families(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError for a family that nobody knows, or no data root."""
    load(resolve(arguments.imports, Path.cwd()))
    families = [_named(text) for text in arguments.families] or list(FAMILIES.values())
    root = _root(arguments.data_root)
    if arguments.json:
        told = {
            "root": None if root is None else str(root),
            "families": [_family_as_dict(family, root) for family in families],
        }
        say(json.dumps(told, indent=1))
        return 0
    width = Console().width
    for family in families:
        for line in _family_lines(family, root, width):
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


def _family_as_dict(family: Family, root: Path | None) -> dict[str, Any]:
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


def _family_lines(family: Family, root: Path | None, width: int) -> Iterator[str]:
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


FORMAT = 1
"""Of the file, and of how digests are made: those of another cannot be compared."""
SHORTEST = 8


class SavedSplit(BaseModel):
    """What counts of a split."""

    images: int | None
    digest: str | None


class Saved(BaseModel):
    """What counts of a file; the rest of it is for people."""

    format: Literal[1]
    family: str
    digest: str | None
    splits: dict[str, SavedSplit]


def read_saved(file: Path, family: str) -> Saved:
    """Raises RequestError when it is no such file, or of another family."""
    try:
        found = read_json(file)
    except OSError as error:
        raise RequestError(f"--against: {file} cannot be read: {error.strerror}") from None
    if found is None:
        raise RequestError(f"--against: {file} does not exist")
    try:
        saved = Saved.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise RequestError(
            f"--against: {file} is not what `carft-sweep data check --json` prints: "
            f"{where}: {first['msg']}"
        ) from None
    if saved.family != family:
        raise RequestError(f"--against: {file} is of {saved.family}, not of {family}")
    return saved


def compared(splits: Mapping[str, FoundSplit], saved: Saved) -> dict[str, str]:
    """By split `equal`, `differs`, `only here`, `only there`, or `unknown` without two digests."""
    names = dict.fromkeys([*splits, *saved.splits])
    return {name: _compared(splits.get(name), saved.splits.get(name)) for name in names}


def _compared(here: FoundSplit | None, there: SavedSplit | None) -> str:
    if here is None or not here.is_there:
        return "only there"
    if there is None:
        return "only here"
    if here.digest is None or there.digest is None:
        return "unknown" if here.images == there.images else "differs"
    return "equal" if here.digest == there.digest else "differs"


def against_lines(survey: Survey, saved: Saved, file: Path) -> Iterator[str]:
    """What is equal to what somebody else found, and what is not."""
    found = compared(survey.splits, saved)
    yield f"Against {file}:"
    for kind in dict.fromkeys(found.values()):
        names = [name for name, told in found.items() if told == kind]
        yield f"  {kind}: {', '.join(_counted(survey, saved, name, kind) for name in names)}"


def _counted(survey: Survey, saved: Saved, name: str, kind: str) -> str:
    if kind != "differs":
        return name
    here, there = survey.splits[name].images, saved.splits[name].images
    return f"{name} ({_number(here)} images here, {_number(there)} there)"


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def unexpected(survey: Survey, digest: str) -> str | None:
    """Why the data are not those of a digest, or of its beginning. Raises RequestError."""
    wanted = digest.strip().lower()
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST},64}}", wanted):
        raise RequestError(
            f"--expect: must be a digest, or {SHORTEST} or more of its first characters, "
            f"got {digest[:80]!r}"
        )
    if survey.data is None:
        return f"--expect: the data have no digest, for a run would refuse them; {wanted} is wanted"
    if not survey.data.digest.startswith(wanted):
        return f"--expect: the digest of the data is {survey.data.digest}, not {wanted}"
    return None


SHOWN = 8
"""So many characters of a digest stand in the table."""


def check_data(arguments: argparse.Namespace, say: Say) -> int:
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
        say(json.dumps(_survey_as_dict(found, saved), indent=1))
    else:
        for line in _survey_lines(found):
            say(line)
        if saved is not None and file is not None:
            for line in against_lines(found, saved, file):
                say(line)
    if wrong:
        raise RequestError("\n".join(wrong))
    return 0


def _survey_as_dict(found: Survey, saved: Saved | None) -> dict[str, Any]:
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


def _survey_lines(found: Survey) -> Iterator[str]:
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
    classes = _number_or_blank(split.classes)
    if split.classes is not None and split.expected_classes is not None:
        classes = f"{split.classes}/{split.expected_classes}"
    return [
        name,
        _number_or_blank(split.images),
        _number_or_blank(split.published),
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


def _number_or_blank(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


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


def prepare_data(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError when the data cannot be used, whole images or not."""
    config = chosen(arguments)
    began = time.monotonic()
    data = open_whole(config)
    listed = time.monotonic() - began
    looked = _look(data)
    refusal = _refusal(data, looked)
    if arguments.json:
        say(
            json.dumps(_preparation_as_dict(config.family, data, looked, listed, refusal), indent=1)
        )
    else:
        for line in _preparation_lines(config.family, data, looked, listed, refusal):
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


def _preparation_as_dict(
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


def _preparation_lines(
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


def data_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run one of the three. Raises RequestError as it does."""
    actions = {"list": list_families, "check": check_data, "prepare": prepare_data}
    return actions[arguments.action](arguments, say)
