"""The sweep that a path stands for: that of a sweep file, or of a folder in the home."""

from __future__ import annotations

import argparse
from pathlib import Path

from carft_sweep.sweeps.home import find_home
from carft_sweep.sweeps.ledger.trials import sweep_names
from carft_sweep.sweeps.spec.document import SpecDocument, name_of, read_text


def sweep_at(text: str, arguments: argparse.Namespace) -> str:
    """Return the name of the sweep that `text` names or is a path of; a text that is neither as is.

    Raises RequestError for a sweep file that is none.
    """
    home = find_home(arguments.home, trust=arguments.trust_home)
    names = sweep_names(home)
    if text in names:
        return text
    path = Path(text).expanduser()
    below = path.absolute().resolve()
    if below != home.sweeps.resolve() and below.is_relative_to(home.sweeps.resolve()):
        return below.relative_to(home.sweeps.resolve()).parts[0]
    if path.suffix in (".yaml", ".yml"):
        return _name_in(path) if path.is_file() else path.stem
    for file in (path.with_name(f"{path.name}{suffix}") for suffix in (".yaml", ".yml")):
        if file.is_file() and (name := _name_in(file)) in names:
            return name
    return text


def _name_in(file: Path) -> str:
    """Read the name that a sweep file gives its sweep, or else gets from its own."""
    name = SpecDocument(read_text(file), file.name).data.get("name")
    return name if isinstance(name, str) else name_of(file)
