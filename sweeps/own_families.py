"""The family files that a sweep names as its data: read, and from there on known by their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carft_core.errors import RequestError, dotted
from sweeps.draft import Draft, Place
from sweeps.family_file import is_family_file, register_family
from sweeps.yaml_lines import Route

FIELD = ("data", "family")


def name_all(draft: Draft, folder: Path) -> tuple[str, ...]:
    """Put a family's name wherever a normalised draft names its file; gives the files' paths.

    A file is relative to `folder`, where the sweep file lies; one that `--set` names, to the
    current folder. Its mistakes are noted beside those of the draft.
    """
    files: dict[str, None] = {}
    for holder, key, route in list(_named(draft)):
        place = draft.place(route)
        base = Path.cwd() if place.is_of_command_line else folder
        try:
            file = base.absolute() / Path(holder[key]).expanduser()
            holder[key] = register_family(file).name
        except (RequestError, RuntimeError) as error:  # `~nobody/birds.yaml`: no such home
            draft.quote(Place(place.order, f"{place.text}: {dotted(FIELD)}"), error)
            draft.drop(route[:2] if route[0] == "parameters" else route)
        else:
            files[str(file)] = None
    return tuple(files)


def _named(draft: Draft) -> Iterator[tuple[Any, str | int, Route]]:
    """(what holds it, its key there, its route) of each value that is a family file."""
    route: Route = ("trial", *FIELD)
    if is_family_file(draft.get(route)):
        yield draft.get(route[:-1]), FIELD[-1], route
    varied: Route = ("parameters", dotted(FIELD))
    described = draft.mapping(varied) if draft.get(varied) is not None else {}
    if is_family_file(described.get("value")):
        yield described, "value", (*varied, "value")
    values = described.get("values")
    for index, value in enumerate(values if isinstance(values, list) else ()):
        if is_family_file(value):
            yield values, index, (*varied, "values", index)
