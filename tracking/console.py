"""What is printed on a terminal: no name, label or log steers it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""C0 but tab and newline, DEL, and C1: a terminal takes them for commands."""


def printable(text: str) -> str:
    r"""Return a text with each control character but tab and newline written out, as `\x1b`."""
    return _CONTROL.sub(lambda control: f"\\x{ord(control[0]):02x}", text)


class PlainConsole(Console):
    """A console of rich on which only styles make escape sequences, never what is shown."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render, with control characters of texts written out; rich's own move the cursor."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
