"""JSON printed piece by piece, so that no document is ever whole in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def json_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The lines of an object whose lists may be iterators; standard JSON, no NaN."""
    yield "{"
    for index, (key, value) in enumerate(document.items()):
        end = "," if index < len(document) - 1 else ""
        if isinstance(value, (Iterator, list, tuple)):
            yield f" {json.dumps(key)}: ["
            yield from _with_commas(f"  {_json_value(item)}" for item in value)
            yield f" ]{end}"
        else:
            yield f" {json.dumps(key)}: {_json_value(value)}{end}"
    yield "}"


def json_list(documents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a list of such objects."""
    yield "["
    for index, document in enumerate(documents):
        lines = json_lines(document)
        yield from lines if index == len(documents) - 1 else _ended(lines)
    yield "]"


def _ended(lines: Iterator[str]) -> Iterator[str]:
    """With a comma behind the last line."""
    last = next(lines)
    for line in lines:
        yield last
        last = line
    yield f"{last},"


def _with_commas(items: Iterator[str]) -> Iterator[str]:
    """A comma behind each but the last."""
    last = next(items, None)
    if last is None:
        return
    for item in items:
        yield f"{last},"
        last = item
    yield last


def _json_value(value: object) -> str:
    return json.dumps(value, allow_nan=False)
