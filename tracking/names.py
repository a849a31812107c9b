"""What to say of a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """`unknown column 'OD mean'; did you mean 'OOD mean'? Known: ID test, OOD mean.`"""
    names = list(dict.fromkeys(allowed))
    lowered = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"did you mean {lowered[near[0]]!r}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}Known: {', '.join(names) or 'none'}."
