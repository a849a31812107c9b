"""Metrics against parameters: response, map of two, importance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import altair as alt

from carft_sweep.tracking.charts import palette
from carft_sweep.tracking.charts.base import (
    OF_A_SEED,
    Chart,
    Marks,
    Picture,
    inline_data,
    interval_ends,
    interval_rules,
    layered,
    panels,
    percent,
    quantitative,
    scaled,
    seed_dots,
    seed_rows,
    short,
    titled,
    tooltip_format,
    tooltips,
)
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.palette import NEUTRAL, Legend
from carft_sweep.tracking.charts.parameters import Parameter
from carft_sweep.tracking.comparison.compare import Row
from carft_sweep.tracking.comparison.statistics import mean

MOST = 6
"""Parameters with panels: the most important ones."""
_MOST_INTERVALS = 60
_HEIGHT = 200


def draw_response(data: ChartData) -> Picture | None:
    """Draw the settings by each parameter; None where none varies or no setting has an accuracy."""
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
    levels = {metric: _levels(data, metric) for metric in metrics}
    of_seeds = {metric: _seed_points(rows, parameters, metric) for metric in metrics}
    # Where anything else varies too, a line through the points would say nothing.
    joined = len(data.parameters) == 1 and parameters[0].numeric
    charts = [
        _panel(points, levels[metric], of_seeds[metric], legend, parameter, metric, joined=joined)
        for parameter in parameters
        for metric in metrics
    ]
    titles = ", ".join(parameter.title for parameter in parameters)
    return panels(charts, f"ID and OOD accuracy of {len(rows)} settings by {titles}", rows=points)


def _point(
    row: Row, parameters: Sequence[Parameter], metrics: Sequence[str], settings: int
) -> dict[str, Any]:
    point = _place(row, parameters)
    for metric in metrics:
        summary = row.metric(metric)
        if summary.mean is not None:
            point[short(metric)] = percent(summary.mean)
            if settings <= _MOST_INTERVALS:
                point |= interval_ends(summary.ci95, short(metric))
    return point


def _place(row: Row, parameters: Sequence[Parameter]) -> dict[str, Any]:
    place: dict[str, Any] = {"setting": row.arm.label, "method": row.arm.algorithm}
    for parameter in parameters:
        if parameter.name in row.arm.params:
            place[parameter.field] = parameter.shown(row.arm.params[parameter.name])
    return place


def _seed_points(
    rows: Sequence[Row], parameters: Sequence[Parameter], metric: str
) -> list[dict[str, Any]]:
    """List each seed of the settings, where they are few enough for intervals."""
    if len(rows) > _MOST_INTERVALS:
        return []
    return [
        point
        for row in rows
        for point in seed_rows(_place(row, parameters), {short(metric): row.metric(metric).values})
    ]


def _panel(
    points: Sequence[dict[str, Any]],
    levels: Sequence[alt.Chart],
    of_seeds: Sequence[dict[str, Any]],
    legend: Legend,
    parameter: Parameter,
    metric: str,
    *,
    joined: bool,
) -> alt.LayerChart:
    field = short(metric)
    measured = f"isValid(datum['{parameter.field}']) && isValid(datum['{field}'])"
    base = Marks().transform_filter(measured).encode(alt.X(**parameter.axis()), _y(metric))
    lines = base.encode(legend.colour())
    hints = tooltips("setting", parameter.tooltip, (field, ".1f"))
    few = len(points) <= _MOST_INTERVALS
    # Settings with the same value lie upon each other: they show through.
    size, opacity = (50, 0.8) if few else (20, 0.5)
    symbols = base.encode(*legend.symbols(), tooltip=hints)
    seeds = seed_dots(of_seeds, alt.X(**parameter.axis()), _y(metric, OF_A_SEED), legend.colour())
    layers = [
        *([lines.mark_line(strokeWidth=1.5, aria=False)] if joined else []),
        *interval_rules(lines, "y", field, points),
        *(dots.transform_filter(f"isValid(datum['{parameter.field}'])") for dots in seeds),
        symbols.mark_point(filled=False, size=size, opacity=opacity, aria=few),
        *levels,
    ]
    return layered(layers, _HEIGHT)


def _y(metric: str, end: str = "") -> alt.Y:
    scale = alt.Scale(zero=False, nice=True, padding=18)
    return alt.Y(**quantitative(short(metric) + end, titled(metric), scale=scale))


def _levels(data: ChartData, metric: str) -> list[alt.Chart]:
    """Draw dotted lines at the accuracy of zero-shot, named on the left, and of the reference."""
    means = [row.metric(metric).mean for row in data.settings if row.arm.trains]
    middle = mean([value for value in means if value is not None])
    layers: list[alt.Chart] = []
    places: tuple[tuple[Row | None, dict[str, Any]], ...] = (
        (data.zero_shot, {"x": 0, "dx": 4, "align": "left"}),
        (data.reference, {"x": "width", "dx": -4, "align": "right"}),
    )
    for row, place in places:
        level = None if row is None else row.metric(metric).mean
        if row is not None and level is not None:
            rows = [{"setting": row.arm.label, short(metric): percent(level)}]
            base = Marks(inline_data(rows)).encode(_y(metric))
            rule = base.mark_rule(color=NEUTRAL, strokeWidth=1.5, strokeDash=[2, 2], aria=False)
            # On the side where most of the settings are not.
            name = base.mark_text(dy=-6 if level > middle else 8, fontSize=10, **place)
            layers += [rule, name.encode(alt.Text("setting:N"))]
    return layers


RESPONSE = Chart(
    name="response",
    title="Response to each parameter",
    about=(
        "Each symbol is a setting, mean over seeds, where settings are few with its 95 % interval "
        "and, up to ten seeds, a dot for each; a line joins them where nothing else varies. Those "
        "with the same value differ in other parameters. Dotted lines are zero-shot and the "
        "reference."
    ),
    draw=draw_response,
)


_MOST_CELLS = 15
"""Rows or columns of a heat map."""
_MOST_WORDS = 6
"""Columns in which a number can be read on a phone."""
_FEW = 200
_MAP_HEIGHT = 260


@dataclass(frozen=True)
class _Number:
    """One number of each setting, and how it is named."""

    field: str
    title: str
    metric: str
    value: Callable[[Row], float | None]


def draw_parameter_map(data: ChartData) -> Picture | None:
    """Draw settings by two parameters; None where no algorithm varies two."""
    choice = _choose(data)
    if choice is None:
        return None
    rows, x, y = choice
    cells = _cells(data, rows, x, y)
    panel = _heat if _is_grid(rows, x, y) else _scatter
    charts = [
        panel(cells, x, y, number)
        for number in _numbers(data)
        if any(number.field in cell for cell in cells)
    ]
    if not charts:
        return None
    description = (
        f"Map over {x.title} and {y.title} of {rows[0].arm.algorithm}, {len(rows)} settings"
    )
    return panels(charts, description, margin=150, least=440, independent=["color"], rows=cells)


def _numbers(data: ChartData) -> list[_Number]:
    """Return what the selection saw, and OOD accuracy of the unmerged model."""
    rule = data.comparison.rule
    of = "" if rule.merge is None else f", {rule.merge}"
    value = _Number(short(rule.metric) + of, titled(rule.metric) + of, rule.metric, data.value)
    metric = data.comparison.endpoint.ood
    ood = _Number(short(metric), titled(metric), metric, lambda row: row.metric(metric).mean)
    return [value] if value.field == ood.field else [value, ood]


def _choose(data: ChartData) -> tuple[list[Row], Parameter, Parameter] | None:
    """Choose the settings of one algorithm that vary in two parameters, the important ones first.

    The selected setting's algorithm goes before the others.
    """
    numeric = [parameter for parameter in data.parameters if parameter.numeric]
    rest = [parameter for parameter in data.parameters if not parameter.numeric]
    pool = data.parameters if data.importance else (*numeric, *rest)
    selected = data.selected
    first = () if selected is None else (selected.arm.algorithm,)
    for algorithm in dict.fromkeys((*first, *reversed(data.algorithms))):
        settings = [row for row in data.settings if row.arm.algorithm == algorithm]
        for one, two in combinations(pool, 2):
            rows = [row for row in settings if {one.name, two.name} <= set(row.arm.params)]
            if all(len({row.arm.params[p.name] for row in rows}) > 1 for p in (one, two)):
                x, y = (one, two) if one.numeric or not two.numeric else (two, one)
                return rows, x, y
    return None


def _is_grid(rows: Sequence[Row], x: Parameter, y: Parameter) -> bool:
    """Tell whether few values were tried, and most pairs of them."""
    if max(len(x.values), len(y.values)) > _MOST_CELLS:
        return False
    tried = {(x.shown(row.arm.params[x.name]), y.shown(row.arm.params[y.name])) for row in rows}
    return 2 * len(tried) >= len({a for a, _ in tried}) * len({b for _, b in tried})


def _cells(
    data: ChartData, rows: Sequence[Row], x: Parameter, y: Parameter
) -> list[dict[str, Any]]:
    """Average the settings at each place, which differ in other parameters."""
    at: dict[tuple[float | str, float | str], list[Row]] = {}
    for row in rows:
        place = (x.shown(row.arm.params[x.name]), y.shown(row.arm.params[y.name]))
        at.setdefault(place, []).append(row)
    selected = data.selected and data.selected.setting
    cells, numbers = [], _numbers(data)
    for (a, b), there in at.items():
        cell: dict[str, Any] = {
            x.field: a,
            y.field: b,
            "settings": len(there),
        }
        for number in numbers:
            values = [value for row in there if (value := number.value(row)) is not None]
            if values:
                cell[number.field] = scaled(number.metric, mean(values))
        if any(row.setting == selected for row in there):
            cell["selected"] = True
        cells.append(cell)
    return cells


def _colour(cells: Sequence[dict[str, Any]], number: _Number) -> alt.Color:
    values = [cell[number.field] for cell in cells if number.field in cell]
    scale = palette.ramp(min(values), max(values))
    legend = alt.Legend(title=None)
    return alt.Color(field=number.field, type="quantitative", scale=scale, legend=legend)


def _hints(x: Parameter, y: Parameter, number: _Number) -> list[alt.Tooltip]:
    return tooltips(
        x.tooltip, y.tooltip, (number.field, tooltip_format(number.metric)), ("settings", "d")
    )


def _heat(
    cells: Sequence[dict[str, Any]], x: Parameter, y: Parameter, number: _Number
) -> alt.LayerChart:
    base = Marks(title=number.title).encode(alt.X(**x.bands()), alt.Y(**y.bands(upwards=True)))
    layers = [base.mark_rect().encode(_colour(cells, number), tooltip=_hints(x, y, number))]
    if len({cell[x.field] for cell in cells}) <= _MOST_WORDS:
        words = base.mark_text(color="white", fontWeight="bold", aria=False)
        text = alt.Text(
            field=number.field, type="quantitative", format=tooltip_format(number.metric)
        )
        layers.append(words.encode(text))
    selected = base.transform_filter("datum.selected")
    # At the rim of its cell, half of the frame would lie on a page that may be white.
    size = alt.RelativeBandSize(band=0.95)
    layers.append(
        selected.mark_rect(
            filled=False, stroke="white", strokeWidth=3, width=size, height=size, aria=False
        )
    )
    return layered(layers, _MAP_HEIGHT)


def _scatter(
    cells: Sequence[dict[str, Any]], x: Parameter, y: Parameter, number: _Number
) -> alt.LayerChart:
    base = Marks(title=number.title).encode(alt.X(**x.axis()), alt.Y(**y.axis()))
    few = len(cells) <= _FEW
    points = base.mark_point(filled=True, size=70 if few else 30, opacity=0.85, aria=few)
    selected = base.transform_filter("datum.selected")
    layers = [
        points.encode(_colour(cells, number), tooltip=_hints(x, y, number)),
        selected.mark_point(filled=False, size=260, strokeWidth=2.5, color=NEUTRAL, aria=False),
    ]
    return layered(layers, _MAP_HEIGHT)


PARAMETER_MAP = Chart(
    name="map",
    title="Two parameters together",
    about=(
        "The two most important parameters, or the first two numeric ones where importance is not "
        "known: what the selection saw, and OOD accuracy. Orange is higher. A cell is the mean of "
        "the settings there; a frame or ring marks the selected one."
    ),
    draw=draw_parameter_map,
    folded=True,
)


_BAR = 24
_SHARE = "share"


def draw_importance(data: ChartData) -> Picture | None:
    """Draw the shares of the parameters; None where importance is unknown."""
    if not data.importance:
        return None
    titles = {parameter.name: parameter.title for parameter in data.parameters}
    charts = [
        _bars(short(metric), {titles.get(name, name): share for name, share in shares.items()})
        for metric, shares in data.importance.items()
        if shares
    ]
    description = "Share of each parameter in the variance of each metric"
    return panels(charts, description, most=3, margin=140, least=360) if charts else None


def _bars(metric: str, shares: dict[str, float]) -> alt.LayerChart:
    ordered = sorted(shares, key=lambda name: -shares[name])
    rows = [{"parameter": name, _SHARE: round(100 * shares[name], 2)} for name in ordered]
    base = Marks(inline_data(rows), title=metric).encode(
        alt.X(
            field=_SHARE,
            type="quantitative",
            title="share of the variance (%)",
            scale=alt.Scale(domain=[0, 112]),
            axis=alt.Axis(values=[0, 25, 50, 75, 100]),
        ),
        alt.Y("parameter:N", sort=ordered, title=None, axis=alt.Axis(labelLimit=120)),
    )
    bars = base.mark_bar(color=NEUTRAL).encode(tooltip=tooltips("parameter", (_SHARE, ".1f")))
    words = base.mark_text(align="left", dx=4, aria=False)
    numbers = words.encode(alt.Text(f"{_SHARE}:Q", format=".0f"))
    return layered([bars, numbers], _BAR * len(rows))


IMPORTANCE = Chart(
    name="importance",
    title="Which parameter matters",
    about=(
        "How much of the differences between trials is due to each parameter, in percent, for the "
        "metric of the selection; from ten complete trials on. It says that a parameter matters "
        "in the range that was searched, not which value is better."
    ),
    draw=draw_importance,
    folded=True,
)
