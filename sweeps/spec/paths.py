"""The texts of a sweep file that name files and folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.errors import Route
from carft_sweep.carft_core.files import path_or_none
from carft_sweep.sweeps.spec.document import SpecDocument

PATHS = ("data.root", "eval.retention_root", "algorithm.weights")
"""Fields of a trial whose value is always a path."""
NAMES = ("model.name", "model.pretrained", "prompts.classes", "prompts.contexts")
"""Fields whose value is a path where a file of this path exists, or where it has a slash (except
in `model.name`); otherwise it is a name."""


def texts_of(document: SpecDocument, field: str) -> Iterator[tuple[Any, str | int, Route]]:
    """Yield each text that a field of the trial has, fixed or varied: the mapping or list that
    holds it, its key there, and its route."""
    return _texts(document, ("trial", *field.split(".")), ("parameters", field))


def _texts(
    document: SpecDocument, fixed: Route, varied: Route
) -> Iterator[tuple[Any, str | int, Route]]:
    if isinstance(document.get(fixed), str):
        yield document.get(fixed[:-1]), fixed[-1], fixed
    described = document.get(varied)
    if not isinstance(described, dict):
        return
    if isinstance(described.get("value"), str):
        yield described, "value", (*varied, "value")
    values = described.get("values")
    for index, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, str):
            yield values, index, (*varied, "values", index)


def place_paths(document: SpecDocument, folder: Path) -> None:
    """Rewrite the file's paths, which are relative to its `folder`: relative to the current folder
    where they are below it, since workers may run elsewhere, else absolute. `--set`'s stay."""
    folder, current = folder.absolute(), Path.cwd()
    texts = [(field, *text) for field in (*PATHS, *NAMES) for text in texts_of(document, field)]
    baselines = document.get(("baselines",))
    for index in range(len(baselines) if isinstance(baselines, list) else 0):
        route: Route = ("baselines", index, "weights")
        texts += [(PATHS[-1], *text) for text in _texts(document, route, route)]
    for field, holder, key, route in texts:
        text = holder[key]
        is_name = field in NAMES and (field == NAMES[0] or "/" not in text)
        path = folder / text
        if not text or text.startswith("~") or document.place(route).is_of_command_line:
            continue
        if not is_name or path_or_none(str(path)) is not None:
            holder[key] = str(path.relative_to(current) if path.is_relative_to(current) else path)
