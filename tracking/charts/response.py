"""ID and OOD accuracy against each varied parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from carft_sweep.tracking.charts import palette
from carft_sweep.tracking.charts.base import (
    Chart,
    Picture,
    inline_data,
    interval_ends,
    interval_rules,
    panels,
    percent,
    quantitative,
    short,
    titled,
    tooltips,
)
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.palette import Legend
from carft_sweep.tracking.charts.parameters import Parameter
from carft_sweep.tracking.comparison.compare import Row

MOST = 6
"""Most parameters that have panels."""
_MOST_INTERVALS = 60
_HEIGHT = 200


def draw_response(data: ChartData) -> Picture | None:
    """Draw ID and OOD accuracy of every setting against each varied parameter; return None where no
    parameter varies or no setting has an accuracy."""
    parameters, endpoint = data.parameters[:MOST], data.comparison.endpoint
    varied = {parameter.name for parameter in parameters}
    rows = [row for row in data.settings if row.arm.trains and varied & set(row.arm.params)]
    # Runs may have a metric of which no setting has a mean: each lacks it for some seed.
    metrics = [
        name
        for name in (endpoint.id_metric, endpoint.ood)
        if any(row.metric(name).mean is not None for row in rows)
    ]
    if not metrics:
        return None
    names = dict.fromkeys(row.arm.algorithm for row in rows)
    legend = palette.legend_of_methods({name: (name, False) for name in names}, data.algorithms)
    points = [_point(row, parameters, metrics, len(rows)) for row in rows]
    levels = {metric: [*_levels(data, metric)] for metric in metrics}
    # Where anything else varies too, a line through the points would say nothing.
    joined = len(data.parameters) == 1 and parameters[0].numeric
    charts = [
        _panel(points, levels[metric], legend, parameter, metric, joined=joined)
        for parameter in parameters
        for metric in metrics
    ]
    titles = ", ".join(parameter.title for parameter in parameters)
    return panels(charts, f"ID and OOD accuracy of {len(rows)} settings by {titles}", rows=points)


def _point(
    row: Row, parameters: Sequence[Parameter], metrics: Sequence[str], settings: int
) -> dict[str, Any]:
    point: dict[str, Any] = {"setting": row.arm.label, "method": row.arm.algorithm}
    for parameter in parameters:
        if parameter.name in row.arm.params:
            point.setdefault(parameter.field, parameter.shown(row.arm.params[parameter.name]))
    for metric in metrics:
        summary = row.metric(metric)
        if summary.mean is not None:
            point[short(metric)] = percent(summary.mean)
            if settings <= _MOST_INTERVALS:
                point |= interval_ends(summary.ci95, short(metric))
    return point


def _panel(
    points: Sequence[dict[str, Any]],
    levels: Sequence[alt.Chart],
    legend: Legend,
    parameter: Parameter,
    metric: str,
    *,
    joined: bool,
) -> alt.LayerChart:
    field = short(metric)
    measured = f"isValid(datum['{parameter.field}']) && isValid(datum['{field}'])"
    base = alt.Chart().transform_filter(measured).encode(alt.X(**parameter.axis()), _y(metric))
    lines = base.encode(legend.colour())
    hints = tooltips("setting", parameter.tooltip, (field, ".1f"))
    has_room = len(points) <= _MOST_INTERVALS
    # Settings with the same value lie upon each other: they show through.
    size, opacity = (50, 0.8) if has_room else (20, 0.5)
    symbols = base.encode(*legend.symbols(), tooltip=hints)
    layers = [
        *([lines.mark_line(strokeWidth=1.5, aria=False)] if joined else []),
        *interval_rules(lines, "y", field, points),
        symbols.mark_point(filled=False, size=size, opacity=opacity, aria=has_room),
        *levels,
    ]
    return alt.LayerChart(layer=layers, height=_HEIGHT)


def _y(metric: str) -> alt.Y:
    scale = alt.Scale(zero=False, nice=True, padding=18)
    return alt.Y(**quantitative(short(metric), titled(metric), scale=scale))


def _levels(data: ChartData, metric: str) -> Iterator[alt.Chart]:
    """Yield dotted lines at the accuracies of zero-shot, named at its left end, and of the
    reference, named at its right end, so that the names of two equal accuracies do not overlap."""
    ends: tuple[tuple[Row | None, dict[str, Any]], ...] = (
        (data.zero_shot, {"x": 0, "dx": 4, "align": "left"}),
        (data.reference, {"x": "width", "dx": -4, "align": "right"}),
    )
    levels = [
        (row, value, end)
        for row, end in ends
        if row is not None and (value := row.metric(metric).mean) is not None
    ]
    highest = max((value for _, value, _ in levels), default=0.0)
    for row, value, end in levels:
        rows = [{"setting": row.arm.label, short(metric): percent(value)}]
        colour = alt.ColorValue(palette.colour_of(row.arm.algorithm, data.algorithms))
        base = alt.Chart(inline_data(rows)).encode(_y(metric), colour)
        yield base.mark_rule(strokeWidth=2, strokeDash=[2, 2], aria=False)
        name = base.mark_text(dy=10 if value < highest else -9, fontWeight="bold", **end)
        yield name.encode(alt.Text("setting:N"))


RESPONSE = Chart(
    name="response",
    title="Response to each parameter",
    about=(
        "Each symbol is a setting, mean over seeds, where settings are few with its 95 % interval; "
        "a line joins them where nothing else varies. Those with the same value differ in other "
        "parameters. Dotted lines are zero-shot and the reference."
    ),
    draw=draw_response,
)
