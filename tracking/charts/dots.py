"""Dots with intervals: a line of the chart for each split, in it one dot for each row on show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from tracking.charts import marks
from tracking.charts.palette import Signs

_DOT = 11
"""Pixels of height that a dot takes."""
_SPACE = 10


def dots(
    rows: Sequence[Mapping[str, Any]],
    signs: Signs,
    value: str,
    title: str,
    form: str,
    *,
    scale: alt.Scale | None = None,
) -> tuple[list[alt.Chart], int]:
    """Layers and height for rows with `setting`, `split`, the value and perhaps its interval."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    settings = list(signs.entries)
    offset = alt.YOffset("setting:N", sort=settings, scale=alt.Scale(domain=settings))
    lines = alt.Axis(grid=True, tickBand="extent", labelLimit=110)
    base = alt.Chart().encode(
        alt.Y(field="split", type="nominal", sort=splits, title=None, axis=lines),
        alt.X(**marks.number(value, title, scale=scale)),
        offset,
        signs.colour(),
    )
    hints = marks.hints("setting", "split", (value, form), (f"{value} low", form))
    hints += marks.hints((f"{value} high", form))
    points = base.mark_point(filled=True, size=60, opacity=1).encode(signs.shape(), tooltip=hints)
    height = len(splits) * (_DOT * len(settings) + _SPACE)
    return [*marks.interval(base, "x", value, rows), points], height
