"""A registry: the algorithms, merges or families by name, the user's own beside the built-in."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from carft_core.errors import RequestError

T = TypeVar("T")
Anything = TypeVar("Anything")
NAME = re.compile(r"[a-z][a-z0-9_]*")


class Registry(Mapping[str, T]):
    """Things of one kind by their own `name`, in the order in which they came."""

    def __init__(
        self,
        kind: str,
        refusal: Callable[[Any], str | None],
        *,
        code: Callable[[T], Any] = lambda thing: thing,
    ) -> None:
        """`kind` is for messages: "algorithm". `refusal` says what keeps a thing from being one,
        None when nothing does. `code` is the class or function that the thing stands on."""
        self._kind, self._refusal, self._code = kind, refusal, code
        self._things: dict[str, T] = {}

    def register(self, thing: Anything) -> Anything:
        """Add a thing under its own name and give it back, so that it serves as a decorator.

        What is defined in the same place again, as by a module that is reloaded, takes the place
        of the old. Raises RequestError when it is none of the kind, or when its name is taken.
        """
        wrong = self._refusal(thing) or _misnamed(thing)
        if wrong:
            raise RequestError(f"{self._kind} {_shown(thing)} cannot be registered: {wrong}")
        new = cast(T, thing)
        name: str = vars(thing)["name"]
        known = self._things.get(name)
        if known is not None and self._origin(known) != self._origin(new):
            raise RequestError(
                f"{self._kind} {_shown(thing)} cannot be registered: the name {name!r} is taken "
                f"by {self._origin(known)}; give it another"
            )
        self._things[name] = new
        return thing

    def __getitem__(self, name: str) -> T:
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    def _origin(self, thing: T) -> str:
        code = self._code(thing)
        return f"{code.__module__}.{code.__qualname__}"


def no_concrete(base: type, thing: object) -> str | None:
    """What keeps a thing from being a complete subclass of `base`; None when nothing does."""
    if not isinstance(thing, type):
        what = "its instance" if isinstance(thing, base) else "something else"
        return f"it must be a class derived from {base.__name__}, not {what}"
    if not issubclass(thing, base) or thing is base:
        return f"it must be a class derived from {base.__name__}"
    if inspect.isabstract(thing):
        return f"it lacks {', '.join(sorted(getattr(thing, '__abstractmethods__', ())))}"
    return None


def _misnamed(thing: object) -> str | None:
    """What is wrong with the name and the summary that everything has of its own."""
    own = vars(thing)
    for field in ("name", "summary"):
        if not isinstance(own.get(field), str):
            sample = (
                f'{field}: ClassVar[str] = "..."' if isinstance(thing, type) else f'{field}="..."'
            )
            return f"it has no `{field}` of its own, as in {sample}"
    if not NAME.fullmatch(own["name"]):
        return (
            f"its name {own['name']!r} must be lower-case letters, digits and '_', beginning with "
            "a letter, such as 'my_method'"
        )
    if not own["summary"].strip() or "\n" in own["summary"]:
        return "its summary must be one line that says what it is"
    return None


def _shown(thing: object) -> str:
    if isinstance(thing, type):
        return thing.__qualname__
    return repr(getattr(thing, "name", thing))[:80]
