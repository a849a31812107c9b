"""What a sweep needs where there is no git repository: its file and the files that it names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweeps.dimensions import Choice
from sweeps.imports import DECLARED
from sweeps.spec import SweepSpec
from sweeps.submission.tree import File, Tree, file_at

_FIELDS = ("classes", "contexts")
_PARAMETERS = tuple(f"prompts.{field}" for field in _FIELDS)


def as_needed(spec: SweepSpec, sweep_file: Path | None) -> Tree:
    """The sweep file (None for a shipped recipe), family files, modules and template files.

    A module brings the Python files beside it, a package all of its own: they may be drawn on.
    The root is the deepest folder that holds them all and the current one.
    """
    paths = [] if sweep_file is None else [sweep_file]
    for item in own_files(spec):
        paths += [item] if item.name.endswith(DECLARED) else _of_module(item)
    paths += _templates(spec)
    paths = [path.parent.resolve() / path.name for path in paths]
    root = Path(os.path.commonpath([Path.cwd().resolve(), *(path.parent for path in paths)]))
    names = dict.fromkeys(path.relative_to(root).as_posix() for path in paths)
    files: list[File] = [file_at(root, name) for name in names]
    return Tree(root, tuple(files), states=dict.fromkeys(names, "sent"))


def own_files(spec: SweepSpec) -> list[Path]:
    """The modules and family files of the user's own that a sweep imports, absolute."""
    return [Path(item) for item in spec.imports if Path(item).is_absolute()]


def _of_module(file: Path) -> Iterator[Path]:
    if file.name == "__init__.py":
        yield from sorted(file.parent.rglob("*.py"))
    else:
        yield from sorted(file.parent.glob("*.py"))


def _templates(spec: SweepSpec) -> Iterator[Path]:
    """Files of templates, which are named relative to the current folder."""
    prompts = spec.trial.get("prompts", {})
    named: list[Any] = [prompts.get(field) for field in _FIELDS]
    for parameter in spec.parameters:
        if isinstance(parameter, Choice) and parameter.name in _PARAMETERS:
            named += parameter.values
    for value in named:
        if isinstance(value, str) and Path(value).is_file():
            yield Path(value)
