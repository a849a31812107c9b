"""The sweeps of a home as their folders tell, so that a name is looked up without a database."""

from __future__ import annotations

import difflib
from pathlib import Path

from carft_core.errors import RequestError
from sweeps.home import Home


def sweep_folder(home: Home, name: str) -> Path:
    """The folder of a sweep that was begun. Raises RequestError with the nearest name otherwise."""
    if name in _names(home):
        return home.sweep(name)
    raise no_such_sweep(home, name)


def no_such_sweep(home: Home, name: str) -> RequestError:
    """What to say of a name that no sweep has."""
    if not home.path.is_dir():
        return RequestError(
            f"there is no home {home.path}, so no sweep {name!r}; name another with --home or "
            "CARFT_HOME, or make this one with carft-sweep run"
        )
    known = _names(home)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return RequestError(
        f"no sweep {name!r} in {home.path}{hint} Known: {', '.join(known) or 'none'}."
    )


def _names(home: Home) -> list[str]:
    files = (*home.sweeps.glob("*/summary.json"), *home.sweeps.glob("*/driver.json"))
    return sorted({file.parent.name for file in files})


def command(verb: str, name: str, home: str | None) -> str:
    """`carft-sweep resume toy --home x`: what to type next; `home` is the option as given."""
    return " ".join(["carft-sweep", verb, name, *(["--home", home] if home else [])])
