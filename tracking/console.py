"""What is printed on a terminal: no name, label or log steers it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""C0 but tab and newline, DEL, and C1: a terminal takes them for commands; and what turns the
direction of a text, which then reads as another one."""


def printable(text: str) -> str:
    r"""Return a text with each control character but tab and newline written out, as `\x1b`."""
    return _CONTROL.sub(lambda control: ascii(control[0])[1:-1], text)


class PlainConsole(Console):
    """A console of rich on which only styles make escape sequences, never what is shown."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the rendered segments, texts without control characters; rich's own are kept."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
