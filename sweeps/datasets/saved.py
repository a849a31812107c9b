"""Data as they were found elsewhere (`data check --json`), compared with what is here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from carft_core.data.base import FoundSplit
from carft_core.data.survey import Survey
from carft_core.errors import RequestError
from carft_core.files import read_json

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
