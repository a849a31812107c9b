"""The marks that several charts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from tracking.charts.palette import NEUTRAL

Rows = Sequence[Mapping[str, Any]]


def data(rows: Rows) -> alt.InlineData:
    """Rows of numbers and words."""
    return alt.InlineData(values=[dict(row) for row in rows])


def number(
    field: str,
    title: str | None,
    *,
    zero: bool = False,
    scale: alt.Scale | None = None,
    axis: alt.Axis | None = None,
) -> dict[str, Any]:
    """A channel of numbers, which need not begin at zero."""
    found: dict[str, Any] = {"field": field, "type": "quantitative", "title": title}
    found["scale"] = alt.Scale(zero=zero, nice=True, padding=8) if scale is None else scale
    found["axis"] = alt.Axis() if axis is None else axis.copy()
    # Moved inwards from its tick, the first or last number would touch the one beside it.
    found["axis"]["labelFlush"] = False
    return found


def hints(*fields: tuple[str, str] | str) -> list[alt.Tooltip]:
    """Tooltips: words by their field, numbers by (field, format)."""
    return [
        alt.Tooltip(field=field, type="nominal")
        if isinstance(field, str)
        else alt.Tooltip(field=field[0], type="quantitative", format=field[1])
        for field in fields
    ]


def interval(base: alt.Chart, along: Literal["x", "y"], field: str, rows: Rows) -> list[alt.Chart]:
    """A bar from `<field> low` to `<field> high` for the `rows` that have them; none: no layer."""
    if not any(f"{field} low" in row for row in rows):
        return []
    channel, second = (alt.X, alt.X2) if along == "x" else (alt.Y, alt.Y2)
    start = channel(field=f"{field} low", type="quantitative")
    known = base.transform_filter(f"isValid(datum['{field} low'])")
    rule = known.mark_rule(strokeWidth=1.5, opacity=0.75, aria=False)
    return [rule.encode(start, second(field=f"{field} high"))]


def rule_at(value: float, along: Literal["x", "y"]) -> alt.Chart:
    """A thin line across, at a value of the axis."""
    kind = alt.XDatum if along == "x" else alt.YDatum
    # Without a word from it, the first layer would take the grid from the others.
    channel = kind(value, axis=alt.Axis(grid=True))
    mark = alt.Chart(data([{}])).mark_rule(color=NEUTRAL, strokeWidth=1, aria=False)
    rule: alt.Chart = mark.encode(channel)
    return rule
