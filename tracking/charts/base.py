"""What a chart of the report is: a name, words, and a function from evidence to a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import altair as alt

from tracking.evidence import Evidence

Picture = alt.TopLevelMixin


@dataclass(frozen=True)
class Chart:
    """One chart; everything that it draws is in `draw`."""

    name: str
    """Also the name of its static figure."""
    title: str
    about: str
    """What it shows and how to read it, in one to three plain sentences."""
    draw: Callable[[Evidence], Picture | None]
    """None where the sweep has nothing to show in it."""
