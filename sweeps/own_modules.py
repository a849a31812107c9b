"""The user's own modules that a sweep file or the command line names, imported before all else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from carft_core.errors import RequestError
from sweeps import shorthands
from sweeps.draft import COMMAND_LINE, Draft, Place

_ROUTE = "import"


def import_all(draft: Draft, folder: Path, more: Sequence[str]) -> tuple[str, ...]:
    """Import what the draft names (paths are relative to `folder`), and `more`, which the command
    line names (relative to the current folder), each once.

    Gives them such that they mean the same in every process: names, and absolute paths. Raises
    InvalidConfig with every module that cannot be imported.
    """
    found: list[str] = []
    for index, item in enumerate(_named(draft)):
        place = draft.place((_ROUTE, index))
        found += _imported(draft, Place(place.order, f"{place.text}: {_ROUTE}"), item, folder)
    for index, item in enumerate(more):
        shown = Place(2 * COMMAND_LINE + index, f"--import {item[:60]}")
        found += _imported(draft, shown, item, Path.cwd())
    if draft.data.get(_ROUTE) or more:
        # A module that is missing would make every name that it registers a mistake.
        draft.check()
    return tuple(dict.fromkeys(found))


def _named(draft: Draft) -> tuple[str, ...]:
    """What stands in the file, as far as it has the right form; the rest is reported later."""
    given = draft.data.get(_ROUTE)
    try:
        return () if given is None else shorthands.imports(given)
    except ValueError:
        return ()


def _imported(draft: Draft, place: Place, item: str, folder: Path) -> list[str]:
    from sweeps.imports import load, resolve

    try:
        resolved = resolve([item], folder)
        load(resolved)
    except RequestError as error:
        draft.quote(place, error)
        return []
    return list(resolved)
