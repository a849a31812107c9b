"""A sweep file as it is written: YAML with line numbers, and the list of its mistakes."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from carft_sweep.carft_core.config.fields import explained
from carft_sweep.carft_core.errors import InvalidConfig, Problem, RequestError, Route, dotted
from carft_sweep.regular_files import RefusedFile, read_regular

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 30

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"[-+]?[0-9]+\Z"),
    "float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}
"""The core schema of YAML 1.2, without its octal and hexadecimal numbers; all else is text."""
_SURROGATE_OR_NUL = re.compile("[\ud800-\udfff\0]")
# PyYAML's messages, and what they mean to somebody who writes a sweep file.
_PLAINER = (
    ("found character '\\t'", "a tab stands here; indent with spaces"),
    ("mapping values are not allowed", "a ': ' too many; quote the text, or fix the indentation"),
    ("could not find expected ':'", "this line has no ': ' after its key"),
    ("expected <block end>", "this line does not fit the lines above it; fix the indentation"),
    ("end of stream", "a quote that opens here is never closed"),
    ("stream end", "a bracket that opens here is never closed"),
    ("expected ',' or", "a comma or a closing bracket is missing before {}"),
    ("found unexpected document", "a quote is still open where the document ends"),
    ("that cannot start any token", "a text that begins with this character must be quoted"),
    ("second occurrence", "an anchor (&) is given twice"),
    ("but found another document", "a second document begins here; a file holds one"),
)


class YamlError(RequestError):
    """Text that is no usable YAML. `line` is 1-based."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        self.reason = reason
        super().__init__(f"line {line}: {reason}")


class Mistake(NamedTuple):
    """Something wrong at one place, after which reading can continue."""

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


def read_text(path: Path, kind: str = "a sweep file", *, follow: bool = True) -> str:
    """Return the text of a file of at most 1 MiB, which errors call `kind`. Raises RequestError
    when it is missing, too large or not text, and without `follow` for a symbolic link."""
    with suppress(PermissionError):  # below a folder that this account may not enter
        if path.is_dir():
            names = ", ".join(sorted(item.name for item in path.glob("*.yaml"))) or "no .yaml file"
            raise RequestError(f"{path} is a folder, not {kind}; in it: {names}")
    try:
        content = read_regular(path, MAX_BYTES, follow=follow)
    except RefusedFile as error:
        is_large = error.errno == errno.EFBIG
        reason = f"is larger than 1 MiB, too large for {kind}" if is_large else error.strerror
        raise RequestError(f"{path} {reason}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{path} cannot be read: {reason}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RequestError(f"{path.name}:{line}: is not UTF-8 text; save it as UTF-8") from None


def parse(text: str) -> Document:
    """Return a parsed YAML document. Raises YamlError when the text is not valid YAML. Duplicate
    keys, keys that are not text, unknown tags and impossible numbers are returned as `mistakes`, so
    that they are reported with all others."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Document(None, {(): 1}, ())
        data = loader.value(root, (), root.start_mark.line + 1)
    except yaml.MarkedYAMLError as error:
        problem = str(error.problem or error.context)
        unclosed = "end of stream" in problem or "stream end" in problem
        mark = (error.context_mark if unclosed else None) or error.problem_mark
        plain = next((words for key, words in _PLAINER if key in problem), problem)
        row, column = (mark.line, mark.column) if mark else (0, 0)
        written = [*text.splitlines(), ""][row]
        # PyYAML notices that a comma is missing before a key only at the colon after the key.
        words = written[:column].split()[-1:] if written[column:].startswith(":") else []
        word = "".join(words or written[column:].split()[:1])
        raise YamlError(row + 1, plain.replace("{}", repr(word))) from None
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise YamlError(line, f"the character {chr(error.character)!r} is not allowed") from None
    except RecursionError:
        raise YamlError(1, f"nested more than {MAX_DEPTH} levels deep") from None
    except YamlError:
        raise
    except (ValueError, OverflowError) as error:
        # PyYAML hands the number in "\UFFFFFFFF" or in a directive to Python without a check.
        raise YamlError(1, f"an escape or directive holds an impossible number: {error}") from None
    return Document(data, loader.lines, tuple(loader.mistakes))


def name_of(file: Path) -> str:
    """Return a sweep's name for its file: the stem, without characters that a name may not have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", file.stem).strip("-_.")[:100] or "sweep"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, the line of each value, and two limits,
    on values and on depth: ten lines of aliases can expand to a billion values."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 - without those of YAML 1.1

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lines: dict[Route, int] = {}
        self.mistakes: list[Mistake] = []
        self._count = 0

    def value(self, node: Node, route: Route, line: int) -> Any:
        """Return `node`, the value at `route`, and all below it as plain data."""
        self._count += 1
        if self._count > MAX_NODES:
            raise YamlError(line, f"more than {MAX_NODES} values (aliases count each time)")
        if len(route) >= MAX_DEPTH:
            deep = f"nested more than {MAX_DEPTH} levels deep"
            raise YamlError(line, f"{deep}, or an alias (*) inside its own anchor (&)")
        self.lines[route] = line
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, ScalarNode) and kind in (*_SCALARS, "str"):
            return self._scalar(kind, str(node.value), route, line)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [
                self.value(item, (*route, index), item.start_mark.line + 1)
                for index, item in enumerate(node.value)
            ]
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, route)
        tag = str(node.tag).replace(_TAG, "!!")
        self.mistakes.append(Mistake(line, route, f"the tag {tag} is not allowed: plain data only"))
        return None

    def _mapping(self, node: MappingNode, route: Route) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, key.value
            if key.tag != f"{_TAG}str" or _SURROGATE_OR_NUL.search(name):
                shown = repr(name) if isinstance(key, ScalarNode) else "a list or mapping"
                self.mistakes.append(Mistake(line, route, f"a key must be text, got {shown}"))
            elif name in mapping:
                first = self.lines[(*route, name)]
                message = f"is given a second time; the first is on line {first}"
                self.mistakes.append(Mistake(line, (*route, name), message))
            else:
                mapping[name] = self.value(value, (*route, name), line)
        return mapping

    def _scalar(self, kind: str, text: str, route: Route, line: int) -> Any:
        if kind in _SCALARS and not _SCALARS[kind].match(text):
            problem = f"{text!r} is not of the type !!{kind}"
        elif kind == "null":
            return None
        elif kind == "bool":
            return text.lower() == "true"
        elif kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        elif kind == "int":
            value = int(text) if len(text) < 100 else 1 << 63
            if abs(value) < 1 << 63:
                return value
            problem = f"the number {text if len(text) < 30 else f'{text[:30]}...'} is too large"
        elif not _SURROGATE_OR_NUL.search(text):
            return text
        else:
            problem = f"{text!r} holds an impossible character"
        self.mistakes.append(Mistake(line, route, problem))
        return None


for _kind, _form in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, _form, None)


MOST_SHOWN = 100
COMMAND_LINE = 1_000_000_000
"""Places from here on are not lines of the file."""
NEEDS = "a sweep file has at least trial"


class Place(NamedTuple):
    """Where a value was given: `kl_weight.yaml:12`, or `--set optim.lr=3`. Lines sort first."""

    order: int
    text: str

    @property
    def is_of_command_line(self) -> bool:
        """Whether the value was given on the command line and not in the file."""
        return self.order >= COMMAND_LINE


class SpecDocument:
    """The data of a sweep file with the place of each value, and the mistakes found so far."""

    def __init__(self, text: str, source: str, needs: str = NEEDS) -> None:
        """Read a YAML mapping. `source` is the file's name in messages. Raises RequestError for
        other text; its message ends with `needs`, what such a file has at least."""
        try:
            document = parse(text)
        except YamlError as error:
            raise RequestError(f"{source}:{error.line}: {error.reason}") from None
        if not isinstance(document.data, dict):
            problem = "is empty" if document.data is None else "holds no mapping"
            raise RequestError(f"{source}:{document.lines[()]}: the file {problem}; {needs}")
        self.data: dict[str, Any] = document.data
        self.lines = document.lines
        lines = document.lines.items()
        self._places = {route: Place(line, f"{source}:{line}") for route, line in lines}
        self._errors: dict[tuple[Place, str], None] = {}
        self._warnings: dict[tuple[Place, str], bool] = {}
        """Whether a warning is of an ignored key; such a warning is shown with the errors too."""
        self._wrong: set[Route] = set()
        self._spoilt = {route for _, route, _ in document.mistakes}
        for line, route, message in document.mistakes:
            self.add_error_at(Place(line, f"{source}:{line}"), message, route)

    def place(self, route: Route) -> Place:
        """Return the place of the value at `route`, else of the innermost value around it."""
        while route not in self._places:
            route = route[:-1]
        return self._places[route]

    def add_error(self, route: Route, message: str) -> None:
        """Record a mistake at `route`, unless reading the YAML there was a mistake already. Raises
        InvalidConfig when there are more than anybody will read, MOST_SHOWN."""
        if any(route[:length] in self._spoilt for length in range(1, len(route) + 1)):
            return
        self.add_error_at(self.place(route), message, route)
        if len(self._errors) > MOST_SHOWN:
            self.raise_errors()

    def add_error_at(self, place: Place, message: str, route: Route = ()) -> None:
        """Record a mistake at a place; some have no route, such as an unreadable `--set`."""
        shown = dotted(route[1:] if route[:1] == ("trial",) and len(route) > 1 else route)
        text = f"{place.text}: {shown}: {message}" if shown else f"{place.text}: {message}"
        self._errors[place, text if len(text) < 2000 else f"{text[:2000]}..."] = None
        self._wrong.add(route)

    def add_errors(self, place: Place, error: Exception) -> None:
        """Record each mistake that `error` lists, of a module or file that is named at `place`."""
        for text in str(error).splitlines() if isinstance(error, InvalidConfig) else [str(error)]:
            self.add_error_at(place, text.removeprefix("import: "))

    def add_warning(self, route: Route, message: str) -> None:
        """Record a warning on a file that is otherwise right."""
        place = self.place(route)
        self._warnings[place, f"{place.text}: {message}"] = False

    def ignore(self, route: Route, message: str) -> None:
        """Remove a value that has no effect here, with a warning."""
        place = self.place(route)
        self._warnings[place, f"{place.text}: {message}"] = True
        self.remove(route)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings in the order in which they were recorded."""
        return tuple(text for _, text in self._warnings)

    @property
    def has_errors(self) -> bool:
        """Whether a mistake was recorded."""
        return bool(self._errors)

    def is_wrong(self, *routes: Route) -> bool:
        """Return whether a mistake was recorded at, below or around one of the routes."""
        return any(
            wrong and (wrong[: len(route)] == route or route[: len(wrong)] == wrong)
            for wrong in self._wrong
            for route in routes
        )

    def raise_errors(self) -> None:
        """Raise InvalidConfig with every recorded mistake, by line; do nothing without one."""
        if not self._errors:
            return
        ignored = (warning for warning, is_ignored in self._warnings.items() if is_ignored)
        lines = [text for _, text in sorted((*self._errors, *ignored), key=lambda item: item[0])]
        if len(lines) > MOST_SHOWN:
            lines = [*lines[:MOST_SHOWN], "and more mistakes"]
        raise InvalidConfig(Problem((), line) for line in lines)

    def get(self, route: Route) -> Any:
        """Return the value at `route`; None for a missing value."""
        value: Any = self.data
        for step in route:
            if isinstance(value, list) and isinstance(step, int):
                value = value[step] if step < len(value) else None
            else:
                value = value.get(step) if isinstance(value, dict) else None
        return value

    def field_values(self, field: str) -> list[Any]:
        """Return the values of a field of the trial: the listed ones, else the fixed one."""
        varied = self.get(("parameters", field))
        if not isinstance(varied, dict):
            return [self.get(("trial", *field.split(".")))]
        listed = varied.get("values", [varied.get("value")])
        return listed if isinstance(listed, list) else [listed]

    def mapping(self, route: Route) -> dict[str, Any]:
        """Return the mapping at `route`; report any other value and return an empty mapping."""
        value = self.get(route)
        if isinstance(value, dict):
            return value
        if value is not None and not self.is_wrong(route):
            self.add_error(route, f"must be a mapping, got {repr(value)[:80]}")
        return {}

    def set(self, route: Route, value: Any, place: Place | None = None) -> None:
        """Put `value` at `route`, and record that it was given at `place` (by default where the
        present value was). Report a route below a value that is no mapping."""
        place = place or self.place(route)
        for known in [known for known in self._places if known[: len(route)] == route]:
            del self._places[known]
        self._spoilt -= {known for known in self._spoilt if known[: len(route)] == route}
        holder = self.data
        for length, step in enumerate(map(str, route[:-1]), start=1):
            if holder.get(step) is None:  # a mapping that is made for this value
                self._places[route[:length]], holder[step] = place, {}
            holder = holder[step]
            if not isinstance(holder, dict):
                message = f"{dotted(route[:length])} is no mapping; set it as a whole"
                self.add_error_at(place, message, route)
                return
        self._places[route], holder[str(route[-1])] = place, value

    def remove(self, route: Route) -> None:
        """Remove the value at `route`."""
        holder = self.get(route[:-1])
        if isinstance(holder, dict):
            holder.pop(route[-1], None)

    def move(self, old: Route, new: Route) -> None:
        """Move the value at `old` to `new`; where `new` has a value, drop and report the first."""
        value, place, is_spoilt = self.get(old), self.place(old), old in self._spoilt
        self.remove(old)
        holder = self.get(new[:-1])
        if isinstance(holder, dict) and new[-1] in holder:
            self.add_error_at(place, f"is given twice, also at {self.place(new).text}", new)
            return
        self.set(new, value, place)
        if is_spoilt:
            self._spoilt.add(new)


M = TypeVar("M", bound=BaseModel)
_OF_A_KEY = "[key]"
"""The last part of an error's location where pydantic means a key and not its value."""


def validated(
    document: SpecDocument, cls: type[M], fields: Mapping[str, Any], route: Route
) -> M | None:
    """Return the model `cls` of `fields`, which stand at `route`; None after reporting mistakes."""
    try:
        return cls.model_validate(dict(fields))
    except ValidationError as error:
        for mistake in explained(error, cls, route):
            path = mistake.path[:-1] if mistake.path[-1:] == (_OF_A_KEY,) else mistake.path
            document.add_error(path, mistake.message)
        return None


def validated_in_part(document: SpecDocument, cls: type[M], fields: Mapping[str, Any]) -> M:
    """Return the model `cls` of a whole file's keys, with defaults in place of wrong values, which
    are reported: so what depends on several keys is checked too, and all mistakes come at once."""
    model, right = validated(document, cls, fields, ()), dict(fields)
    while model is None:
        try:
            model = cls.model_validate({"name": "unnamed", **right})
        except ValidationError as error:
            for item in error.errors():
                right.pop(str(item["loc"][0]), None)
    return model
