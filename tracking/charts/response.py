"""Metrics against parameters: response, map of two, importance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import altair as alt

from tracking.charts import palette, parameters
from tracking.charts.base import (
    Chart,
    Picture,
    ends,
    form,
    inline_data,
    interval,
    layered,
    panels,
    percent,
    quantitative,
    scaled,
    short,
    titled,
    tooltips,
)
from tracking.charts.palette import NEUTRAL, Signs
from tracking.charts.parameters import axis_field, channels, side_by_side
from tracking.comparison.compare import Row
from tracking.comparison.statistics import mean
from tracking.evidence.data import Evidence
from tracking.evidence.parameters import Parameter

MOST = 6
"""Parameters with panels: the most important ones."""
_MOST_INTERVALS = 60
_HEIGHT = 200


class Levels(NamedTuple):
    """What the settings are seen against: lines behind them, and names that they do not hide."""

    rules: list[alt.Chart]
    names: list[alt.Chart]


def draw_response(evidence: Evidence) -> Picture | None:
    """None where no parameter varies or none of its settings has an accuracy."""
    parameters = evidence.parameters[:MOST]
    known = evidence.comparison
    swept = {parameter.name for parameter in parameters}
    rows = [row for row in evidence.settings if row.arm.trains and swept & set(row.arm.params)]
    wanted = (known.terms.id_metric, known.terms.ood)
    # Runs may have a metric of which no setting has a mean: each lacks it for some seed.
    metrics = [name for name in wanted if any(row.metric(name).mean is not None for row in rows)]
    if not rows or not metrics:
        return None
    names = dict.fromkeys(row.arm.algorithm for row in rows)
    signs = palette.of_series({name: (name, False) for name in names}, evidence.algorithms)
    levels = {metric: _levels(evidence, metric) for metric in metrics}
    points = [_point(row, parameters, metrics, len(rows)) for row in rows]
    charts = [
        _panel(points, levels[metric], signs, parameter, metric, line=_is_line(evidence, parameter))
        for parameter in parameters
        for metric in metrics
    ]
    told = ", ".join(parameter.title for parameter in parameters)
    return panels(charts, f"ID and OOD accuracy of {len(rows)} settings by {told}", rows=points)


def _point(
    row: Row, parameters: tuple[Parameter, ...], metrics: list[str], of: int
) -> dict[str, Any]:
    found: dict[str, Any] = {"setting": row.arm.label, "series": row.arm.algorithm}
    for parameter in parameters:
        if parameter.name in row.arm.params:
            found[axis_field(parameter)] = parameter.shown(row.arm.params[parameter.name])
    for metric in metrics:
        told = row.metric(metric)
        if told.mean is not None:
            found[short(metric)] = percent(told.mean)
            found |= ends(told.ci95, short(metric)) if of <= _MOST_INTERVALS else {}
    return found


def _panel(
    points: Sequence[dict[str, Any]],
    levels: Levels,
    signs: Signs,
    parameter: Parameter,
    metric: str,
    *,
    line: bool,
) -> alt.LayerChart:
    field, key = short(metric), axis_field(parameter)
    most = max(Counter(point[key] for point in points if key in point).values(), default=0)
    base = alt.Chart().encode(*channels(parameter, most), _y(metric), signs.colour())
    hints = tooltips("setting", (key, "~g") if parameter.numeric else key, (field, ".1f"))
    few = len(points) <= _MOST_INTERVALS
    size, opacity = (70, 1.0) if few else (26, 0.6)
    symbols = base.encode(signs.shape(), tooltip=hints)
    # What is read aloud would else name the place of a symbol, which may stand beside its value.
    aloud = alt.ExprRef(f"datum.setting + ', {titled(metric)}: ' + format(datum['{field}'], '.1f')")
    layers = [
        *levels.rules,
        *([base.mark_line(strokeWidth=1.5, aria=False)] if line else []),
        *interval(base, "y", field, points),
        symbols.mark_point(filled=True, size=size, opacity=opacity, aria=few, description=aloud),
        *levels.names,
    ]
    known = f"isValid(datum['{key}']) && isValid(datum['{field}'])"
    transform = [alt.FilterTransform(filter=known), *side_by_side(parameter, most)]
    return layered(layers, _HEIGHT, transform)


def _y(metric: str) -> alt.Y:
    scale = alt.Scale(zero=False, nice=True, padding=18)
    return alt.Y(**quantitative(short(metric), titled(metric), scale=scale))


def _is_line(evidence: Evidence, parameter: Parameter) -> bool:
    """Whether nothing else varies, so that a line through the points says something."""
    return parameter.numeric and len(evidence.parameters) == 1


def _levels(evidence: Evidence, metric: str) -> Levels:
    """Lines across at the accuracy of zero-shot and of the reference, named at their ends.

    A name stands on the side where most of the settings are not.
    """
    known = (row.metric(metric).mean for row in evidence.settings if row.arm.trains)
    middle = mean([value for value in known if value is not None])
    rules, names = [], []
    for row, at_end in ((evidence.zero_shot, False), (evidence.reference, True)):
        level = None if row is None else row.metric(metric).mean
        if row is None or level is None:
            continue
        data = inline_data([{"setting": row.arm.label, short(metric): percent(level)}])
        base = alt.Chart(data).encode(_y(metric))
        rules.append(base.mark_rule(color=NEUTRAL, strokeWidth=1.5, strokeDash=[2, 2], aria=False))
        words = base.mark_text(
            x="width" if at_end else 0,
            align="right" if at_end else "left",
            dx=-4 if at_end else 4,
            dy=-6 if level > middle else 8,
            fontSize=10,
        )
        names.append(words.encode(alt.Text("setting:N")))
    return Levels(rules, names)


RESPONSE = Chart(
    name="response",
    title="Response to each parameter",
    about=(
        "Each symbol is a setting, mean over seeds, with its 95 % interval where the settings are "
        "few; a line joins them where nothing else varies. Those with the same value stand side by "
        "side about it: they differ in other parameters. Dotted lines are zero-shot and the "
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
class _Shown:
    """One number of each setting, and how it is called."""

    field: str
    title: str
    metric: str
    value: Callable[[Row], float | None]


def draw_parameter_map(evidence: Evidence) -> Picture | None:
    """None where no algorithm varies two parameters."""
    chosen = _chosen(evidence)
    if chosen is None:
        return None
    rows, x, y = chosen
    cells = _cells(evidence, rows, x, y)
    panel = _heat if _is_grid(rows, x, y) else _scatter
    charts = [
        panel(cells, x, y, shown)
        for shown in _numbers(evidence)
        if any(shown.field in cell for cell in cells)
    ]
    if not charts:
        return None
    told = f"Map over {x.title} and {y.title} of {rows[0].arm.algorithm}, {len(rows)} settings"
    return panels(charts, told, margin=150, least=440, independent=["color"], rows=cells)


def _numbers(evidence: Evidence) -> list[_Shown]:
    """What the selection saw, and OOD accuracy of the unmerged model."""
    rule = evidence.comparison.rule
    of = "" if rule.merge is None else f", {rule.merge}"
    seen = _Shown(short(rule.metric) + of, titled(rule.metric) + of, rule.metric, evidence.value)
    metric = evidence.comparison.terms.ood
    ood = _Shown(short(metric), titled(metric), metric, lambda row: row.metric(metric).mean)
    return [seen] if seen.field == ood.field else [seen, ood]


def _chosen(evidence: Evidence) -> tuple[list[Row], Parameter, Parameter] | None:
    """The settings of one algorithm that vary in two parameters, the important ones first.

    The selected setting's algorithm goes before the others.
    """
    numeric = [parameter for parameter in evidence.parameters if parameter.numeric]
    rest = [parameter for parameter in evidence.parameters if not parameter.numeric]
    pool = evidence.parameters if evidence.importance else (*numeric, *rest)
    selected = evidence.selected
    first = () if selected is None else (selected.arm.algorithm,)
    for algorithm in dict.fromkeys((*first, *reversed(evidence.algorithms))):
        ours = [row for row in evidence.settings if row.arm.algorithm == algorithm]
        for one, two in combinations(pool, 2):
            rows = [row for row in ours if {one.name, two.name} <= set(row.arm.params)]
            if all(len({row.arm.params[p.name] for row in rows}) > 1 for p in (one, two)):
                x, y = (one, two) if one.numeric or not two.numeric else (two, one)
                return rows, x, y
    return None


def _is_grid(rows: Sequence[Row], x: Parameter, y: Parameter) -> bool:
    """Whether few values were tried, and most pairs of them."""
    if max(len(x.values), len(y.values)) > _MOST_CELLS:
        return False
    tried = {(x.shown(row.arm.params[x.name]), y.shown(row.arm.params[y.name])) for row in rows}
    return 2 * len(tried) >= len({a for a, _ in tried}) * len({b for _, b in tried})


def _cells(
    evidence: Evidence, rows: Sequence[Row], x: Parameter, y: Parameter
) -> list[dict[str, Any]]:
    """One for each place: means of the settings there, which differ in other parameters."""
    at: dict[tuple[float | str, float | str], list[Row]] = {}
    for row in rows:
        place = (x.shown(row.arm.params[x.name]), y.shown(row.arm.params[y.name]))
        at.setdefault(place, []).append(row)
    selected = evidence.selected and evidence.selected.arm.runs
    cells = []
    for (a, b), there in at.items():
        cell: dict[str, Any] = {
            parameters.axis_field(x): a,
            parameters.axis_field(y): b,
            "settings": len(there),
        }
        for shown in _numbers(evidence):
            values = [value for row in there if (value := shown.value(row)) is not None]
            if values:
                cell[shown.field] = scaled(shown.metric, mean(values))
        if any(row.arm.runs == selected for row in there):
            cell["selected"] = True
        cells.append(cell)
    return cells


def _colour(cells: Sequence[dict[str, Any]], shown: _Shown) -> alt.Color:
    values = [cell[shown.field] for cell in cells if shown.field in cell]
    scale = palette.ramp(min(values), max(values))
    legend = alt.Legend(title=None)
    return alt.Color(field=shown.field, type="quantitative", scale=scale, legend=legend)


def _hints(x: Parameter, y: Parameter, shown: _Shown) -> list[alt.Tooltip]:
    places = (
        (parameters.axis_field(p), "~g") if p.numeric else parameters.axis_field(p) for p in (x, y)
    )
    return tooltips(*places, (shown.field, form(shown.metric)), ("settings", "d"))


def _heat(
    cells: Sequence[dict[str, Any]], x: Parameter, y: Parameter, shown: _Shown
) -> alt.LayerChart:
    base = alt.Chart(title=shown.title).encode(
        alt.X(**parameters.cells(x)), alt.Y(**parameters.cells(y, upwards=True))
    )
    layers = [base.mark_rect().encode(_colour(cells, shown), tooltip=_hints(x, y, shown))]
    if len({cell[parameters.axis_field(x)] for cell in cells}) <= _MOST_WORDS:
        words = base.mark_text(color="white", fontWeight="bold", aria=False)
        number = alt.Text(field=shown.field, type="quantitative", format=form(shown.metric))
        layers.append(words.encode(number))
    chosen = base.transform_filter("datum.selected")
    # At the rim of its cell, half of the frame would lie on a page that may be white.
    size = alt.RelativeBandSize(band=0.95)
    layers.append(
        chosen.mark_rect(
            filled=False, stroke="white", strokeWidth=3, width=size, height=size, aria=False
        )
    )
    return layered(layers, _MAP_HEIGHT)


def _scatter(
    cells: Sequence[dict[str, Any]], x: Parameter, y: Parameter, shown: _Shown
) -> alt.LayerChart:
    base = alt.Chart(title=shown.title).encode(
        alt.X(**parameters.channel(x)), alt.Y(**parameters.channel(y))
    )
    few = len(cells) <= _FEW
    points = base.mark_point(filled=True, size=70 if few else 30, opacity=0.85, aria=few)
    chosen = base.transform_filter("datum.selected")
    layers = [
        points.encode(_colour(cells, shown), tooltip=_hints(x, y, shown)),
        chosen.mark_point(filled=False, size=260, strokeWidth=2.5, color=NEUTRAL, aria=False),
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
)


_BAR = 24
_SHARE = "share"


def draw_importance(evidence: Evidence) -> Picture | None:
    """None where importance is not known."""
    if not evidence.importance:
        return None
    titles = {parameter.name: parameter.title for parameter in evidence.parameters}
    charts = [
        _bars(short(metric), {titles.get(name, name): share for name, share in shares.items()})
        for metric, shares in evidence.importance.items()
        if shares
    ]
    told = "Share of each parameter in the variance of each metric"
    return panels(charts, told, most=3, margin=140, least=360) if charts else None


def _bars(metric: str, shares: dict[str, float]) -> alt.LayerChart:
    ordered = sorted(shares, key=lambda name: -shares[name])
    rows = [{"parameter": name, _SHARE: round(100 * shares[name], 2)} for name in ordered]
    base = alt.Chart(inline_data(rows), title=metric).encode(
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
)
