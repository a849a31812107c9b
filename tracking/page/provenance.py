"""Where the numbers of a report come from, as text that names neither user nor machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HOMES = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s\"']+")


@dataclass(frozen=True)
class Fact:
    """One thing that is known, such as the digest of the data."""

    name: str
    values: tuple[str, ...]
    """Several where runs differ."""


@dataclass(frozen=True)
class SweepFile:
    """A sweep file as it was run."""

    name: str
    text: str


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to judge the numbers, and to make them again."""

    facts: tuple[Fact, ...]
    commands: tuple[str, ...]
    files: tuple[SweepFile, ...]


def without_user(text: str) -> str:
    """The text with every user's home folder as `~`."""
    home = str(Path.home())
    # A folder deeper down that is called the same, such as /data/root, is nobody's home.
    whole = re.compile(rf"(?<![\w.~/\\-]){re.escape(home)}(?![\w.-])")
    own = whole.sub("~", text) if len(home) > 1 else text
    return _HOMES.sub("~", own)
