"""Stand-ins for a function of the product: one whose calls are seen, and one that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def watched(patch: pytest.MonkeyPatch, owner: Any, name: str, see: Callable[..., Any]) -> list[Any]:
    """What `see` makes of the arguments of each call of a function, which works as before."""
    seen: list[Any] = []
    function = getattr(owner, name)

    def watching(*args: Any, **fields: Any) -> Any:
        seen.append(see(*args, **fields))
        return function(*args, **fields)

    patch.setattr(owner, name, watching)
    return seen


def failing(error: BaseException) -> Callable[..., Any]:
    """A function that ends with an error, whatever it is called with."""

    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail
