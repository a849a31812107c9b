"""The commands on data sets: data list, data check."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData, open_whole
from carft_sweep.carft_core.data.base import DataConfig, DataFolder
from carft_sweep.carft_core.data.folders import DATA_ROOT_ENV, data_root, find_folder
from carft_sweep.carft_core.data.survey import Survey, survey
from carft_sweep.carft_core.data.unreadable import bad_files_of
from carft_sweep.carft_core.errors import InvalidConfig, Problem, RequestError
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.parser import keys
from carft_sweep.sweeps.cli.table import table_lines
from carft_sweep.sweeps.scheduler.progress import to_stderr
from carft_sweep.sweeps.spec import user_code
from carft_sweep.sweeps.spec.document import COMMAND_LINE, Place, SpecDocument
from carft_sweep.sweeps.spec.normalize import apply_overrides
from carft_sweep.sweeps.spec.spec import place_data
from carft_sweep.tracking.console import PlainConsole

_FAMILY = ("trial", "data", "family")


def data_config(arguments: argparse.Namespace) -> DataConfig:
    """Return the data config of a run with the options of `data check`, CARFT_DATA and the family's
    defaults. Raises InvalidConfig with every mistake at once."""
    family: str = arguments.family
    overrides = [*arguments.overrides, *(f"{key}={text}" for key, text in keys(arguments).items())]
    document = SpecDocument("{}", "data")
    user_code.import_all(document, Path.cwd(), arguments.imports)
    document.set(_FAMILY, family, Place(COMMAND_LINE - 1, family))
    for index, override in enumerate(overrides):
        key = override.partition("=")[0].strip().removeprefix("trial.")
        if not key.startswith("data.") or key == "data.family":
            place = Place(COMMAND_LINE + index, f"--set {override[:60]}")
            message = "only fields of data count here, such as data.shifts=[v2,r]"
            document.add_error_at(place, message)
    apply_overrides(document, overrides)
    user_code.name_families(document, Path.cwd())
    document.raise_errors()
    place_data(document)
    try:
        return trial_config({"data": document.get(_FAMILY[:2]), "algorithm": "fine_tune"}).data
    except InvalidConfig as error:
        raise InvalidConfig(
            Problem((), f"{document.place(('trial', *problem.path)).text}: {problem}")
            for problem in error.problems
        ) from None


def list_families(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run `data list`. Raises RequestError for an unknown family or root."""
    user_code.load(user_code.resolve(arguments.imports, Path.cwd()))
    families = [_family(text) for text in arguments.families] or list(FAMILIES.values())
    root = _data_root(arguments.data_root)
    listed = [_family_as_dict(family, root) for family in families]
    if arguments.json:
        listing = {"root": None if root is None else str(root), "families": listed}
        emit(json.dumps(listing, indent=1))
        return
    width = PlainConsole().width
    for family in listed:
        emit("\n".join([*_family_lines(family, width, sought=root is not None), ""]))
    emit(f"Data root: {root or f'none; --data-root or {DATA_ROOT_ENV} names it'}")


def _family(text: str) -> Family:
    if user_code.is_family_file(text):
        return user_code.register_family(Path(text).expanduser())
    if text not in FAMILIES:
        raise RequestError(FAMILIES.unknown(text))
    return FAMILIES[text]


def _data_root(option: str | None) -> Path | None:
    """Return `--data-root`, else CARFT_DATA; None where neither is set."""
    folder = os.environ.get(DATA_ROOT_ENV) if option is None else json.loads(option)
    return data_root(DataConfig(root=folder), {}) if folder else None


def _family_as_dict(family: Family, root: Path | None) -> dict[str, Any]:
    place = user_code.place_of(DataConfig(family=family.name))

    def found(folder: DataFolder) -> str | None:
        there = None if root is None else find_folder(root, folder)
        return None if there is None else str(there)

    return {
        "family": family.name,
        "summary": family.summary,
        # Where a family file says that its images lie.
        "place": None if place == "builtin" else place,
        "splits": {
            name: {
                "folders": list(folder.names),
                "layout": folder.layout,
                "origin": folder.origin,
                "images": folder.images,
                "found": found(folder),
            }
            for name, folder in family.folders.items()
        },
    }


def _family_lines(family: Mapping[str, Any], width: int, *, sought: bool) -> Iterator[str]:
    """Yield a family as lines of text; `sought` says whether its data root is known."""
    text = f"{family['family']}: {family['summary']}"
    yield from textwrap.wrap(text, width, subsequent_indent="  ")
    if not family["splits"]:
        where = "" if family["place"] is None else f"; its images lie in {family['place']}"
        yield f"  reads nothing below the data root{where}"
        return
    columns = ["split", "images", *["found"] * sought, "folder, and where to get it"]
    rows = []
    for name, split in family["splits"].items():
        folder, *others = split["folders"]
        also = f" (or {', '.join(others)})" if others else ""
        what = f"{folder}{also}\nwith {split['layout']}, from {split['origin']}"
        is_found = ["no" if split["found"] is None else "yes"] * sought
        rows.append([name, f"{split['images']:,}", *is_found, what])
    for line in table_lines(columns, rows, width=width - 2, right=["images"]):
        yield f"  {line}"


SHOWN = 8
"""Characters of a digest that the table shows."""


def check_data(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run `data check`. Raises RequestError, after the table, when a run would refuse the data."""
    config, bad = data_config(arguments), None
    if arguments.read:
        with suppress(RequestError):  # the survey says it too
            bad = _read_images(open_whole(config))
    result = survey(config)
    if arguments.json:
        more = {"refusal": result.refusal, "bad": bad}
        emit(json.dumps(_survey_as_dict(result) | more, indent=1))
    else:
        unreadable = [name for name, errors in (bad or {}).items() if errors]
        emit("\n".join(_survey_lines(result, unreadable)))
        if bad is not None and not unreadable:
            emit("Every image can be read.")
    if result.refusal is not None:
        raise RequestError(result.refusal)


def _survey_as_dict(result: Survey) -> dict[str, Any]:
    return {
        "family": result.config.family,
        "root": user_code.place_of(result.config),
        "digest": None if result.data is None else result.data.digest,
        "splits": {
            name: {
                "status": split.status,
                "folder": None if split.folder is None else str(split.folder),
                "images": split.images,
                "published": split.published,
                "classes": split.classes,
                "expected_classes": split.expected_classes,
                "digest": split.digest,
            }
            for name, split in result.splits.items()
        },
        "notes": [] if result.data is None else list(result.data.notes),
    }


def _survey_lines(result: Survey, unreadable: Collection[str]) -> Iterator[str]:
    """Yield a survey as lines of text; `unreadable` names the splits that have such images."""
    place = user_code.place_of(result.config)
    yield f"{result.config.family}{'' if place == 'builtin' else f' in {place}'}"
    if not result.splits:
        return
    columns = ["split", "images", "published", "classes", "digest", "status"]
    rows = [
        [
            name,
            f"{split.images:,}",
            "" if split.published is None else f"{split.published:,}",
            f"{split.classes}/{split.expected_classes}",
            split.digest[:SHOWN],
            "unreadable images" if name in unreadable else split.status,
        ]
        for name, split in result.splits.items()
    ]
    head, *body = table_lines(columns, rows, right=columns[1:4])
    yield head
    for line, (name, split) in zip(body, result.splits.items(), strict=True):
        yield line
        if split.folder is not None:
            inside = split.folder.is_relative_to(place)
            folder = str(split.folder.relative_to(place) if inside else split.folder)
            if folder != name:
                yield f"  {folder}"
    if result.data is not None:
        yield f"digest {result.data.digest}"
        if "val" not in result.splits and result.data.val is not None:
            share = f"data.val_fraction {result.config.val_fraction:g}"
            yield f"{len(result.data.val):,} images of train become id/val ({share})"
        yield from (f"! {note}" for note in result.data.notes)


def _read_images(data: FamilyData) -> Mapping[str, Mapping[str, str]]:
    """Decode every image, showing progress; return by split the ids of unreadable images, and what
    is wrong with each."""
    console = PlainConsole(stderr=True)
    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    unreadable = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for name, split in data.splits.items():
            # Of a part the whole is looked at, once for all its parts.
            every = len(split.whole or split)
            task = progress.add_task(name, total=every)

            def advance(count: int, task: Any = task) -> None:
                progress.update(task, completed=count)

            unreadable[name] = bad_files_of(data, name, advance)
            progress.update(task, completed=every)
            if not console.is_terminal:
                count = len(unreadable[name])
                to_stderr(f"{name}: {len(split):,} images, {count:,} cannot be read")
    return unreadable


def data_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run `data list` or `data check`. Raises RequestError as these do."""
    actions = {"list": list_families, "check": check_data}
    actions[arguments.action](arguments, emit)
