"""How wide a chart is: as its place, or in panels, of which a phone has one column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from tracking.charts.marks import Rows

NARROWEST = 250
"""Pixels of a panel's own width in one column, which fits a phone."""
_ROWS = "rows"
"""Data by name and not inline: Altair checks every inline value, and of thousands that is slow."""
Spec = dict[str, Any]


def layered(
    charts: Sequence[alt.Chart | alt.LayerChart],
    height: int,
    transform: Sequence[alt.Transform] = (),
) -> alt.LayerChart:
    """One panel of charts upon each other, the last on top; `transform` is for their rows."""
    transforms = list(transform) or alt.Undefined
    return alt.LayerChart(layer=list(charts), height=height, transform=transforms)


def single(
    charts: Sequence[alt.Chart | alt.LayerChart], height: int, description: str, rows: Rows
) -> alt.LayerChart:
    """The same as a whole chart, as wide as its place; `rows` are for layers without their own."""
    return alt.LayerChart(
        data=alt.NamedData(name=_ROWS),
        datasets={_ROWS: rows},
        layer=list(charts),
        height=height,
        width="container",
        description=description,
        background="transparent",
    )


def panels(
    charts: Sequence[alt.Chart | alt.LayerChart],
    description: str,
    *,
    rows: Rows | None = None,
    most: int = 2,
    margin: int = 70,
    least: int = 300,
    independent: Sequence[str] = (),
) -> alt.ConcatChart:
    """The charts in rows of at most `most`, in a column until `fitted` to a width.

    `margin` is what axes and space take of a column, `least` the narrowest column, in pixels. Both
    stand in the spec's `usermeta`, since Vega-Lite itself fits no panels to a page. Legends are
    shared but for `independent` channels; `rows` are for layers without their own.
    """
    rules = {"panels": {"most": min(most, len(charts)), "margin": margin, "least": least}}
    return alt.ConcatChart(
        data=alt.Undefined if rows is None else alt.NamedData(name=_ROWS),
        datasets=alt.Undefined if rows is None else {_ROWS: rows},
        concat=[chart.properties(width=NARROWEST) for chart in charts],
        columns=1,
        description=description,
        background="transparent",
        usermeta=rules,
        resolve={"scale": dict.fromkeys(independent, "independent")},
    )


def fitted(spec: Mapping[str, Any], width: int) -> Spec:
    """A spec for a place of this many pixels; `fit` in page.js does the same in the browser."""
    rules = spec.get("usermeta", {}).get("panels")
    if rules is None:
        return {**spec, "width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    columns = max(1, min(rules["most"], width // rules["least"]))
    each = width // columns - rules["margin"]
    charts = [{**chart, "width": each} for chart in spec["concat"]]
    return {**spec, "columns": columns, "concat": charts}
