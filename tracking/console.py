"""Terminal output in which no name, label or log can issue control sequences."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, which a terminal takes for commands (C0 but tab and newline, DEL, C1), and
marks of the writing direction, with which a text reads as another one."""


def printable(text: str) -> str:
    r"""Return `text` with control characters and direction marks escaped, as `\x1b`."""
    return _CONTROL.sub(lambda control: ascii(control[0])[1:-1], text)


class PlainConsole(Console):
    """A rich console in which only styles produce escape sequences, never the printed text."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the rendered segments with control characters escaped; rich's own controls stay."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
