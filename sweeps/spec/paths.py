"""The texts of a sweep file that name files and folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.errors import Route
from carft_sweep.carft_core.files import path_or_none
from carft_sweep.sweeps.spec.document import SpecDocument

PATHS = ("data.root", "eval.retention_root", "algorithm.weights")
"""Fields of a trial that only a path can be."""
NAMES = ("model.name", "model.pretrained", "prompts.classes", "prompts.contexts")
"""Fields that are a path where there is one; else a name, or a slash makes it a path, except in
`model.name`."""


def texts_of(document: SpecDocument, field: str) -> Iterator[tuple[Any, str | int, Route]]:
    """Yield each text that a field of the trial has, fixed or varied: the mapping or list that
    holds it, its key there, and its route."""
    route: Route = ("trial", *field.split("."))
    if isinstance(document.get(route), str):
        yield document.get(route[:-1]), route[-1], route
    varied: Route = ("parameters", field)
    described = document.mapping(varied) if document.get(varied) is not None else {}
    if isinstance(described.get("value"), str):
        yield described, "value", (*varied, "value")
    values = described.get("values")
    for index, value in enumerate(values if isinstance(values, list) else ()):
        if isinstance(value, str):
            yield values, index, (*varied, "values", index)


def place_paths(document: SpecDocument, folder: Path) -> None:
    """Let paths that the file gives be relative to its `folder`, as those of `--set` are to the
    current folder. Below the current folder a path stays relative, for workers elsewhere."""
    folder, here = folder.absolute(), Path.cwd()
    texts = [(field, *text) for field in (*PATHS, *NAMES) for text in texts_of(document, field)]
    baselines = document.get(("baselines",))
    for index, item in enumerate(baselines if isinstance(baselines, list) else ()):
        route: Route = ("baselines", index, "weights")
        weights = item.get("weights") if isinstance(item, dict) else None
        if isinstance(weights, str):
            texts.append((PATHS[-1], item, "weights", route))
        values = weights.get("values") if isinstance(weights, dict) else None
        for place, value in enumerate(values if isinstance(values, list) else ()):
            if isinstance(value, str):
                texts.append((PATHS[-1], values, place, (*route, "values", place)))
    for field, holder, key, route in texts:
        text = holder[key]
        is_name = field in NAMES and (field == NAMES[0] or "/" not in text)
        path = folder / text
        if not text or text.startswith("~") or document.place(route).is_of_command_line:
            continue
        if not is_name or path_or_none(str(path)) is not None:
            holder[key] = str(path.relative_to(here) if path.is_relative_to(here) else path)
