"""What answers at an address of Ray's dashboard, or of something else that listens there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.services.answering import Answer, Asked, answering


@dataclass
class FakeHead:
    """Its answers by `METHOD /path`, or in general; what it was asked, with the headers."""

    answers: dict[str, Answer] = field(default_factory=dict)
    otherwise: Answer = field(default_factory=lambda: Answer("not here", 404))
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    address: str = ""


@contextmanager
def fake_head(**made: Any) -> Iterator[FakeHead]:
    """A server on a port of its own."""
    head = FakeHead(**made)

    def answer(asked: Asked) -> Answer:
        what = f"{asked.method} {asked.path}"
        head.asked.append((what, asked.headers, asked.body))
        return head.answers.get(what, head.otherwise)

    with answering(answer) as head.address:
        yield head
