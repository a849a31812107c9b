"""Errors of the places where runs are recorded, and helpers that word messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 20


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return `unknown column 'OD mean'; did you mean 'OOD mean'?`, or the list of known names."""
    names = list(dict.fromkeys(allowed))
    lowered = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    near = near or [known for known in lowered if name and known.startswith(name.lower())]
    listed = ", ".join(names[:MOST_LISTED]) or "none"
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    hint = f"did you mean {lowered[near[0]]!r}?" if near else f"Known: {listed}{more}."
    return f"unknown {kind} {name!r}; {hint}"


class ServiceUnreachable(RuntimeError):
    """Failure of a tracking server to answer; the command line exits with 4."""


class RequestFailed(ServiceUnreachable):
    """Failure of a tracking store at one request, by a fault of the store or the request's content.
    The request is repeated a few times, then the record is set aside."""


class AccessDenied(ServiceUnreachable):
    """Refusal of a server that is reachable, because of credentials or permissions. A running sweep
    waits until they are corrected; a new one is refused with exit code 2."""


class TrackingError(RuntimeError):
    """Mistake in a request, or a store that cannot be used as it is; the message says why."""


def counted(number: int, noun: str) -> str:
    """Return `1 seed` or `2 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
