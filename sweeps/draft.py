"""A sweep file while it is read: its data in one shape, where each value stands, what is wrong.

However a file writes a field (nested, dotted, by an alias, with `--set`), here it stands at one
route: `("trial", "optim", "lr")` or `("parameters", "optim.lr")`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from carft_core.errors import InvalidConfig, Problem, RequestError, dotted
from sweeps.yaml_lines import Document, Route

MOST_SHOWN = 100
COMMAND_LINE = 1_000_000_000
"""Places from here on are not lines of the file."""
NEEDS = "a sweep file has at least name and trial"


class Place(NamedTuple):
    """Where a value was given: `kl_weight.yaml:12`, or `--set optim.lr=3`. Sorts as read."""

    order: int
    text: str

    @property
    def is_of_command_line(self) -> bool:
        """Whether it was given there and not in the file."""
        return self.order >= COMMAND_LINE


class Draft:
    """A sweep file's data with the place of each value, and the mistakes found so far."""

    def __init__(self, document: Document, source: str, needs: str = NEEDS) -> None:
        """Raises RequestError when the document is no mapping; `needs` says what it must hold."""
        if not isinstance(document.data, dict):
            found = "is empty" if document.data is None else "holds no mapping"
            raise RequestError(f"{source}:{document.lines[()]}: the file {found}; {needs}")
        self.data: dict[str, Any] = document.data
        self.lines = document.lines
        self.warnings: list[str] = []
        self._places = {
            route: Place(line, f"{source}:{line}") for route, line in document.lines.items()
        }
        self._mistakes: dict[tuple[Place, str], None] = {}
        self._spoilt = {route for _, route, _ in document.mistakes}
        for line, route, message in document.mistakes:
            self._say(Place(line, f"{source}:{line}"), route, message)

    def place(self, route: Route) -> Place:
        """Where the value at `route` was given, or the nearest one around it."""
        while route not in self._places:
            route = route[:-1]
        return self._places[route]

    def report(self, route: Route, message: str) -> None:
        """Note a mistake; one that only follows from a mistake in reading is left out.

        Raises InvalidConfig when there are more than anybody will read.
        """
        if any(route[:length] in self._spoilt for length in range(1, len(route) + 1)):
            return
        self._say(self.place(route), route, message)
        if len(self._mistakes) > MOST_SHOWN:
            self.check()

    def complain(self, place: Place, message: str) -> None:
        """Note a mistake that has a place but no route, such as that of an unreadable `--set`."""
        self._say(place, (), message)

    def quote(self, place: Place, error: Exception) -> None:
        """Note what is wrong in a module or file that is named at `place`, mistake by mistake."""
        for text in str(error).splitlines() if isinstance(error, InvalidConfig) else [str(error)]:
            self._say(place, (), text.removeprefix("import: "))

    def _say(self, place: Place, route: Route, message: str) -> None:
        shown = dotted(route[1:] if route[:1] == ("trial",) and len(route) > 1 else route)
        text = f"{place.text}: {shown}: {message}" if shown else f"{place.text}: {message}"
        self._mistakes[place, text if len(text) < 2000 else f"{text[:2000]}..."] = None

    @property
    def is_wrong(self) -> bool:
        """Whether a mistake was found."""
        return bool(self._mistakes)

    def check(self) -> None:
        """Raise InvalidConfig with every mistake so far, by line."""
        lines = [text for place, text in sorted(self._mistakes, key=lambda found: found[0])]
        if len(lines) > MOST_SHOWN:
            lines = [*lines[:MOST_SHOWN], "and more mistakes"]
        if lines:
            raise InvalidConfig(Problem((), line) for line in lines)

    def get(self, route: Route) -> Any:
        """The value at `route`; None when there is none."""
        value: Any = self.data
        for step in route:
            if isinstance(value, list) and isinstance(step, int):
                value = value[step] if step < len(value) else None
            else:
                value = value.get(step) if isinstance(value, dict) else None
        return value

    def mapping(self, route: Route) -> dict[str, Any]:
        """The mapping at `route`; empty when it is left out, or (which is reported) is none."""
        value = self.get(route)
        if isinstance(value, dict):
            return value
        if value is not None:
            self.report(route, f"must be a mapping, got {repr(value)[:80]}")
        return {}

    def put(self, route: Route, value: Any, place: Place) -> None:
        """Let `value`, given at `place`, stand at `route` instead of what stood there.

        Nothing happens below something that is no mapping: that is reported where it is read.
        """
        for known in [known for known in self._places if known[: len(route)] == route]:
            del self._places[known]
        self._spoilt -= {known for known in self._spoilt if known[: len(route)] == route}
        for length in range(1, len(route)):
            if self.get(route[:length]) is None:  # it is there for the sake of this value
                self._places[route[:length]] = place
        self._places[route] = place
        self._set(route, value)

    def drop(self, route: Route) -> None:
        """Let nothing stand at `route`."""
        holder = self.get(route[:-1])
        if isinstance(holder, dict):
            holder.pop(route[-1], None)

    def move(self, old: Route, new: Route) -> None:
        """Let the value at `old`, with its places, stand at `new`, unless one stands there."""
        holder = self.get(new[:-1])
        if isinstance(holder, dict) and new[-1] in holder:
            self._say(self.place(old), new, f"is given twice, also at {self.place(new).text}")
            self.drop(old)
            return
        value = self.get(old)
        self.drop(old)
        length = len(old)
        self._places |= {
            (*new, *route[length:]): place
            for route, place in self._places.items()
            if route[:length] == old
        }
        self._spoilt |= {(*new, *route[length:]) for route in self._spoilt if route[:length] == old}
        self._set(new, value)

    def _set(self, route: Route, value: Any) -> None:
        holder: Any = self.data
        for step in route[:-1]:
            if isinstance(holder, dict) and holder.get(str(step)) is None:
                holder[str(step)] = {}
            holder = holder[str(step)] if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            holder[str(route[-1])] = value
