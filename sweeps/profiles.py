"""Profiles of a sweep file: named sets of changes to its keys, such as another backbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from carft_core.errors import unknown
from sweeps.draft import Draft, Place

ROUTE = ("profiles",)
KEY = "profile"
"""What `--set` calls it: `--set profile=smoke` is `--profile smoke`."""


def names(draft: Draft) -> tuple[str, ...]:
    """Those that the file has."""
    return tuple(draft.mapping(ROUTE))


def changes(draft: Draft, name: str) -> Iterator[tuple[str, Any, Place]]:
    """Each key that the profile changes, its value, and where that stands in the file."""
    for key, value in draft.mapping((*ROUTE, name)).items():
        yield key, value, draft.place((*ROUTE, name, key))


def no_such(draft: Draft, name: str) -> str:
    """What to say of a profile that the file has not."""
    known = names(draft)
    return unknown("profile", name, known) if known else "the file has no profiles"
