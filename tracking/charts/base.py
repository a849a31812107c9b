"""Parts that charts share: layout, marks, units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.palette import NEUTRAL
from carft_sweep.tracking.comparison.metrics import SPLITS, TITLES
from carft_sweep.tracking.comparison.statistics import Interval

Rows = Sequence[Mapping[str, Any]]


def inline_data(rows: Rows) -> alt.InlineData:
    """Return rows of numbers and words as the inline data of a chart."""
    # A tuple: Altair copies every list in a chart, again and again as charts are put together.
    return alt.InlineData(values=tuple(dict(row) for row in rows))


def quantitative(
    field: str, title: str | None, *, scale: alt.Scale | None = None, axis: alt.Axis | None = None
) -> dict[str, Any]:
    """Return the encoding of column `field` on a numeric axis, which need not begin at zero."""
    channel: dict[str, Any] = {"field": field, "type": "quantitative", "title": title}
    channel["scale"] = alt.Scale(zero=False, nice=True, padding=8) if scale is None else scale
    channel["axis"] = alt.Axis() if axis is None else axis.copy()
    # Moved inwards from its tick, the first or last number would touch the one beside it.
    channel["axis"]["labelFlush"] = False
    return channel


def tooltips(*fields: tuple[str, str] | str) -> list[alt.Tooltip]:
    """Return tooltips of `fields`: a text column by its name, a numeric one as (name, format)."""
    return [
        alt.Tooltip(field=field, type="nominal")
        if isinstance(field, str)
        else alt.Tooltip(field=field[0], type="quantitative", format=field[1])
        for field in fields
    ]


def interval_rules(
    base: alt.Chart, along: Literal["x", "y"], field: str, rows: Rows
) -> list[alt.Chart]:
    """Return a layer of bars from `<field> low` to `<field> high`, or [] where no row has both."""
    if not any(f"{field} low" in row for row in rows):
        return []
    channel, second = (alt.X, alt.X2) if along == "x" else (alt.Y, alt.Y2)
    start = channel(field=f"{field} low", type="quantitative")
    measured = base.transform_filter(f"isValid(datum['{field} low'])")
    rule = measured.mark_rule(strokeWidth=1.5, opacity=0.75, aria=False)
    return [rule.encode(start, second(field=f"{field} high"))]


HALO = "halo"
"""Name of the style of texts drawn behind others as a halo, in the colour of the page."""


def with_halo(text: alt.Chart, **mark: Any) -> list[alt.Chart]:
    """Return layers of texts on a halo in the page's colour, so that no line crosses them."""
    return [text.mark_text(style=HALO, aria=False, **mark), text.mark_text(aria=False, **mark)]


def rule_at(value: float, along: Literal["x", "y"]) -> alt.Chart:
    """Return a chart of a thin line across the panel, at a value of the axis `along`."""
    datum = alt.XDatum if along == "x" else alt.YDatum
    # Without it, the first layer would take the grid from the others.
    channel = datum(value, axis=alt.Axis(grid=True))
    mark = alt.Chart(inline_data([{}])).mark_rule(color=NEUTRAL, strokeWidth=1, aria=False)
    rule: alt.Chart = mark.encode(channel)
    return rule


_WORDS = 12
"""Font size in every chart, in pixels, so that texts can be read on a screen and on paper."""
_CONFIG = {
    "axis": {"labelFontSize": _WORDS, "titleFontSize": _WORDS},
    "legend": {"labelFontSize": _WORDS},
    "text": {"fontSize": _WORDS},
}
NARROWEST = 250
"""Width of a panel in one column, in pixels: it fits a phone."""
Spec = dict[str, Any]


def single(
    charts: Sequence[alt.Chart | alt.LayerChart], height: int, description: str, rows: Rows
) -> alt.LayerChart:
    """Return a chart of one panel with layered charts; `fitted` sets its width later. `rows` are
    for layers without rows of their own."""
    return alt.LayerChart(
        data=inline_data(rows),
        layer=list(charts),
        height=height,
        description=description,
        background="transparent",
        config=_CONFIG,
    )


def panels(
    charts: Sequence[alt.Chart | alt.LayerChart],
    description: str,
    *,
    rows: Rows,
    margin: int = 70,
    least: int = 300,
) -> alt.ConcatChart:
    """Return a chart of panels in rows of at most two, in one column until `fitted` to a width.

    `margin` is the width of axes and space in a column, `least` the narrowest column, in pixels.
    Both are in the spec's `usermeta`, since Vega-Lite fits no panels to a page. Legends are shared;
    `rows` are for layers without rows of their own.
    """
    rules = {"panels": {"most": min(2, len(charts)), "margin": margin, "least": least}}
    return alt.ConcatChart(
        data=inline_data(rows),
        concat=[chart.properties(width=NARROWEST) for chart in charts],
        columns=1,
        description=description,
        background="transparent",
        config=_CONFIG,
        usermeta=rules,
    )


def as_spec(chart: alt.TopLevelMixin) -> Spec:
    """Return a chart as a Vega-Lite specification, in plain data."""
    assert isinstance(chart, alt.SchemaBase)  # as every chart of Altair is
    return chart.to_dict(validate=False)


def fitted(spec: Mapping[str, Any], width: int) -> Spec:
    """Return a specification fitted to a width in pixels, as `fit` in page.js does."""
    rules = spec.get("usermeta", {}).get("panels")
    if rules is None:
        return {**spec, "width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    columns = max(1, min(rules["most"], width // rules["least"]))
    each = width // columns - rules["margin"]
    charts = [{**chart, "width": each} for chart in spec["concat"]]
    return {**spec, "columns": columns, "concat": charts}


def on_white(chart: alt.TopLevelMixin, width: int) -> Spec:
    """Return a specification of a chart fitted to a width in pixels, on white like Altair's own. In
    the report charts are transparent, and their words have the colours of its theme."""
    spec = fitted(as_spec(chart), width)
    spec.pop("background")
    halo = {"stroke": "white", "fill": "white", "strokeWidth": 3, "strokeJoin": "round"}
    return {**spec, "config": {**spec["config"], "style": {HALO: halo}}}


def split_name(split: str) -> str:
    """Return a split's name for readers: `ID test r` of `id/test_r`, `outline` of `ood/outline`."""
    return SPLITS.get(split, split.removeprefix("ood/").replace("id/test_", "ID test "))


def short(metric: str) -> str:
    """Return the name of an accuracy without a unit: `ID test top-1`."""
    split, _, kind = metric.rpartition("/")
    return f"{split_name(split)} {TITLES[kind]}"


def titled(metric: str) -> str:
    """Return the name of an accuracy with its unit: `ID test top-1 (%)`."""
    return f"{short(metric)} (%)"


def percent(fraction: float) -> float:
    """Convert a fraction to percent, rounded, since a page has thousands of such numbers."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return round(100 * fraction, 3) + 0.0


def interval_ends(ci95: Interval | None, name: str) -> dict[str, float]:
    """Return `<name> low` and `<name> high` in percent; empty without an interval."""
    if ci95 is None:
        return {}
    return {f"{name} low": percent(ci95.low), f"{name} high": percent(ci95.high)}


Picture = alt.TopLevelMixin


@dataclass(frozen=True)
class Chart:
    """A chart of the report."""

    name: str
    """Also the name of its static figure."""
    title: str
    about: str
    """What it shows and how to read it, in one to three plain sentences."""
    draw: Callable[[ChartData], Picture | None]
    """Returns None where there is nothing to show."""
    folded: bool = False
    """Whether the page draws it only when a reader unfolds it."""
