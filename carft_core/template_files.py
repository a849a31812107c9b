"""A user's own templates: a text file with one a line, or YAML; every mistake with its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from carft_core.errors import InvalidConfig, Problem, RequestError, unknown

SUFFIXES = (".txt", ".yaml", ".yml")
FIELDS = ("name", "templates", "domains")
MAX_BYTES = 1_000_000
EXAMPLE = 'such as "a photo of a {}"'


class TemplateFile(NamedTuple):
    """What a file says, checked."""

    name: str
    templates: tuple[str, ...]
    domains: tuple[str, ...]


def read_template_file(path: Path) -> TemplateFile:
    """Read a `.txt` file (blank lines and lines that begin with # are skipped) or a YAML mapping
    `{name?, templates, domains?}`. The name is by default the file's.

    Raises RequestError with all mistakes, each with its line or place.
    """
    if path.suffix not in SUFFIXES:
        raise RequestError(f"{path}: a file of templates ends in one of {', '.join(SUFFIXES)}")
    text = _text(path)
    if path.suffix == ".txt":
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
        kept = [(number, line) for number, line in lines if line and not line.startswith("#")]
        templates = tuple(line for _, line in kept)
        _refuse(path, templates, [f"line {number}" for number, _ in kept])
        return TemplateFile(path.stem, templates, ())
    return _from_yaml(path, text)


def mistakes(templates: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index, what is wrong) for every template that is not text with exactly one `{}`, or that
    stands in the set already."""
    for index, template in enumerate(templates):
        first = templates.index(template)
        count = template.count("{}")
        rest = template.replace("{}", "")
        if not template.strip():
            yield index, f"is empty; a template is a text with one {{}}, {EXAMPLE}"
        elif "{" in rest or "}" in rest:
            yield index, f"{template!r} has other braces; the class is written {{}}, {EXAMPLE}"
        elif count != 1:
            often = "no" if count == 0 else f"{count} times"
            yield index, f"{template!r} has {often} {{}}; it takes exactly one, {EXAMPLE}"
        elif first < index:
            yield index, f"{template!r} stands in the set twice; each template counts once"


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RequestError(f"{path} has {size} bytes; templates take at most {MAX_BYTES}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not text in UTF-8") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None


def _from_yaml(path: Path, text: str) -> TemplateFile:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RequestError(f"{path}:{line} not YAML: {problem}") from None
    except RecursionError:
        raise RequestError(f"{path}: not a set of templates: nested too deeply") from None
    if not isinstance(data, dict):
        raise RequestError(
            f"{path}: must be a mapping with `templates:`, a list of texts with one {{}} each"
        )
    problems = [
        Problem((str(path),), unknown("field", key, FIELDS)) for key in data if key not in FIELDS
    ]
    name = data.get("name", path.stem)
    if not isinstance(name, str) or not name:
        problems.append(Problem((f"{path}: name",), "must be a text"))
    templates = _texts(data.get("templates"), f"{path}: templates", problems)
    domains = _texts(data.get("domains", []), f"{path}: domains", problems)
    if problems:
        raise InvalidConfig(problems)
    templates = tuple(template.strip() for template in templates)
    _refuse(path, templates, [f"templates[{index}]" for index in range(len(templates))])
    return TemplateFile(name, templates, domains)


def _texts(value: object, place: str, problems: list[Problem]) -> tuple[str, ...]:
    if not isinstance(value, list):
        problems.append(Problem((place,), "must be a list of texts"))
        return ()
    for index, item in enumerate(value):
        if item == {}:
            problems.append(
                Problem((place, index), 'YAML reads a bare {} as a mapping: write "{}"')
            )
        elif not isinstance(item, str):
            problems.append(
                Problem((place, index), f"must be a text in quotes, not {type(item).__name__}")
            )
    return tuple(item for item in value if isinstance(item, str))


def _refuse(path: Path, templates: Sequence[str], places: Sequence[str]) -> None:
    if not templates:
        raise RequestError(f"{path} holds no template; one a line, {EXAMPLE}")
    found = [
        Problem((f"{path}: {places[index]}",), message) for index, message in mistakes(templates)
    ]
    if found:
        raise InvalidConfig(found)
