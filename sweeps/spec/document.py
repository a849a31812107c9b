"""A sweep file as it is written: YAML with line numbers, and the list of its mistakes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from yaml.composer import Composer
from yaml.error import MarkedYAMLError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from carft_core.errors import InvalidConfig, Problem, RequestError, Route, dotted
from carft_core.fields import explained

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 30

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
    "str": re.compile(r".*", re.DOTALL),
}
_SURROGATE_OR_NUL = re.compile("[\ud800-\udfff\0]")
# PyYAML's words, and what they mean to somebody who writes a sweep file.
_PLAINER = (
    ("found character '\\t'", "a tab stands here; YAML wants spaces"),
    ("mapping values are not allowed", "a ': ' too many; quote the text, or mend the indentation"),
    ("could not find expected ':'", "this line has no ': ' after its key"),
    ("expected <block end>", "this line does not fit the lines above it; mend the indentation"),
    ("end of stream", "a quote that opens here is never closed"),
    ("stream end", "a bracket that opens here is never closed"),
    ("expected ',' or", "a comma or a closing bracket is missing before this"),
    ("found unexpected document", "a quote is still open where the document ends"),
    ("that cannot start any token", "a text that begins with this character must be quoted"),
    ("but found another document", "a second document begins here; a file holds one"),
)


class YamlError(RequestError):
    """The text is not YAML that can be used. `line` is 1-based."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        self.reason = reason
        super().__init__(f"line {line}: {reason}")


class Mistake(NamedTuple):
    """Something wrong at one place, after which reading could go on."""

    line: int
    route: Route
    message: str


@dataclass(frozen=True)
class Document:
    """One YAML document as plain data."""

    data: Any
    """Nested dict, list, str, int, float, bool, None; None when the text is empty."""
    lines: Mapping[Route, int]
    """The 1-based line of every value; in a mapping, of its key."""
    mistakes: tuple[Mistake, ...]


def read_text(path: Path, kind: str = "a sweep file") -> str:
    """The text of a file of at most 1 MiB. Raises RequestError when it is no such file."""
    if path.is_dir():
        names = ", ".join(sorted(item.name for item in path.glob("*.yaml"))) or "no .yaml file"
        raise RequestError(f"{path} is a folder, not {kind}; in it: {names}")
    if path.exists() and not path.is_file():
        raise RequestError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{path} cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise RequestError(f"{path} is larger than 1 MiB, too large for {kind}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RequestError(f"{path.name}:{line}: is not UTF-8 text; save it as UTF-8") from None


def parse(text: str) -> Document:
    """Read one YAML document. Raises YamlError where nothing can be made of the text.

    Duplicate keys, keys that are not text, unknown tags and impossible numbers are returned as
    `mistakes`, so that they are reported beside all others.
    """
    root = _composed(text)
    if root is None:
        return Document(None, {(): 1}, ())
    reading = _Reading()
    data = reading.value(root, (), root.start_mark.line + 1)
    return Document(data, reading.lines, tuple(reading.mistakes))


def _composed(text: str) -> Node | None:
    try:
        return _Loader(text).get_single_node()
    except MarkedYAMLError as error:
        problem = str(error.problem or error.context)
        unclosed = "end of stream" in problem or "stream end" in problem
        mark = (error.context_mark if unclosed else None) or error.problem_mark
        plain = next((words for key, words in _PLAINER if key in problem), problem)
        raise YamlError(mark.line + 1 if mark else 1, plain) from None
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise YamlError(line, f"the character {chr(error.character)!r} is not allowed") from None
    except YamlError:
        raise
    except (ValueError, OverflowError) as error:
        # PyYAML hands the number in "\UFFFFFFFF" or in a directive to Python without a look.
        raise YamlError(1, f"an escape or directive holds an impossible number: {error}") from None


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's own parts, up to the graph of nodes, with YAML 1.2's scalars and two limits."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth = 0
        self.nodes = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        self.nodes += 1
        self.depth += 1
        _limit(self.nodes, self.depth, line)
        if not isinstance(event, AliasEvent) and event.anchor in self.anchors:
            raise YamlError(line, f"the anchor &{event.anchor} is given twice")
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def resolve(self, kind: type[Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is ScalarNode:
            if not implicit[0]:
                return f"{_TAG}str"
            return _TAG + next(name for name, form in _SCALARS.items() if form.fullmatch(value))
        return f"{_TAG}seq" if kind is SequenceNode else f"{_TAG}map"


def _limit(nodes: int, depth: int, line: int) -> None:
    if nodes > MAX_NODES:
        raise YamlError(line, f"more than {MAX_NODES} values (aliases count each time)")
    if depth > MAX_DEPTH:
        raise YamlError(line, f"nested more than {MAX_DEPTH} levels deep")


class _Reading:
    """One pass from nodes to plain data."""

    def __init__(self) -> None:
        self.lines: dict[Route, int] = {}
        self.mistakes: list[Mistake] = []
        self._open: list[Node] = []
        self._nodes = 0

    def value(self, node: Node, route: Route, line: int) -> Any:
        self._nodes += 1
        _limit(self._nodes, len(self._open) + 1, line)
        if any(node is outer for outer in self._open):
            raise YamlError(line, "an alias (*) stands inside its own anchor (&)")
        self.lines[route] = line
        if isinstance(node, ScalarNode):
            return self._scalar(node, route, line)
        expected = "map" if isinstance(node, MappingNode) else "seq"
        if node.tag != _TAG + expected:
            self._tag(node, route, line)
            return None
        self._open.append(node)
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, route)
            return [
                self.value(item, (*route, index), item.start_mark.line + 1)
                for index, item in enumerate(node.value)
            ]
        finally:
            self._open.pop()

    def _mapping(self, node: MappingNode, route: Route) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, ScalarNode) and key.value == "<<" and key.style is None:
                merged |= self._merged(value, route, line)
                continue
            name = self._key(key, route, line)
            if name is None:
                continue
            if name in found:
                first = self.lines[(*route, name)]
                message = f"stands here a second time; the first is on line {first}"
                self.mistakes.append(Mistake(line, (*route, name), message))
                continue
            found[name] = self.value(value, (*route, name), line)
        return {**merged, **found}

    def _merged(self, node: Node, route: Route, line: int) -> dict[str, Any]:
        """What `<<: *base` brings in; the mapping's own keys win, as do earlier bases."""
        bases = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for base in reversed(bases):
            known = dict(self.lines)
            value = self.value(base, route, line)
            if not isinstance(value, dict):
                self.mistakes.append(Mistake(line, route, "`<<` wants an alias of a mapping"))
                continue
            # A key that was read before the merge keeps its own line.
            self.lines |= known
            merged |= value
        return merged

    def _key(self, node: Node, route: Route, line: int) -> str | None:
        if (
            isinstance(node, ScalarNode)
            and node.tag == f"{_TAG}str"
            and not _SURROGATE_OR_NUL.search(node.value)
        ):
            return str(node.value)
        shown = repr(node.value) if isinstance(node, ScalarNode) else "a list or mapping"
        self.mistakes.append(Mistake(line, route, f"a key must be text, got {shown}"))
        return None

    def _scalar(self, node: ScalarNode, route: Route, line: int) -> Any:
        kind = node.tag.removeprefix(_TAG)
        text = str(node.value)
        if kind not in _SCALARS:
            self._tag(node, route, line)
        elif not _SCALARS[kind].fullmatch(text):
            self.mistakes.append(Mistake(line, route, f"{text!r} is not of the type !!{kind}"))
        elif kind == "str":
            if not _SURROGATE_OR_NUL.search(text):
                return text
            self.mistakes.append(Mistake(line, route, f"{text!r} holds an impossible character"))
        elif kind == "int":
            return self._int(text, route, line)
        elif kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        elif kind == "bool":
            return text.lower() == "true"
        return None

    def _int(self, text: str, route: Route, line: int) -> int | None:
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        value = int(text.removeprefix("0o"), base) if len(text) < 100 else 1 << 63
        if abs(value) < 1 << 63:
            return value
        shown = text if len(text) < 30 else f"{text[:30]}..."
        self.mistakes.append(Mistake(line, route, f"the number {shown} is too large"))
        return None

    def _tag(self, node: Node, route: Route, line: int) -> None:
        tag = str(node.tag).replace(_TAG, "!!")
        self.mistakes.append(Mistake(line, route, f"the tag {tag} is not allowed: plain data only"))


MOST_SHOWN = 100
COMMAND_LINE = 1_000_000_000
"""Places from here on are not lines of the file."""
NEEDS = "a sweep file has at least trial"


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


M = TypeVar("M", bound=BaseModel)
_OF_A_KEY = "[key]"
"""Where pydantic says that it means a key and not its value."""


def validated(draft: Draft, cls: type[M], fields: Mapping[str, Any], route: Route) -> M | None:
    """The model of `fields`, which stand at `route`; None after reporting what is wrong."""
    try:
        return cls.model_validate(dict(fields))
    except ValidationError as error:
        for mistake in explained(error, cls, route):
            path = mistake.path[:-1] if mistake.path[-1:] == (_OF_A_KEY,) else mistake.path
            draft.report(path, mistake.message)
        return None
