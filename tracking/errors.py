"""Errors of places where runs are recorded."""

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


class ServiceUnreachable(RuntimeError):
    """A tracking server does not answer; the command line exits with 4."""

    retry_after: float | None = None
    """So many seconds the server has asked to be left alone, if it has."""


class RequestFailed(ServiceUnreachable):
    """The store failed at one request: by trouble of its own, or because of what was in it.

    The projection repeats the request a few times, and then sets it aside.
    """


class NotLetIn(ServiceUnreachable):
    """It answers, and will not have us as long as nobody changes something: a password, a right.

    A sweep that has begun waits for that; one that begins is refused, and the exit code is 2.
    """


class UnknownHost(ServiceUnreachable):
    """Nobody here knows a host of this name: misspelt, or known on other machines only."""


class TrackingError(RuntimeError):
    """What a store was told is wrong, or it cannot be used as it is; the message says why."""
