"""ID and OOD accuracy against each swept parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from tracking.charts import axes, marks, palette, spread
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import layered, panels
from tracking.charts.measures import ends, percent, short, titled
from tracking.charts.palette import NEUTRAL, Signs
from tracking.evidence import Evidence
from tracking.evidence.parameters import Parameter
from tracking.rows import Row
from tracking.statistics import mean

MOST = 6
"""Parameters with panels: the most important ones."""
_MOST_INTERVALS = 60
_HEIGHT = 200


class Levels(NamedTuple):
    """What the settings are seen against: lines behind them, and names that they do not hide."""

    rules: list[alt.Chart]
    names: list[alt.Chart]


def draw(evidence: Evidence) -> Picture | None:
    """None where no parameter varies or none of its settings has an accuracy."""
    parameters = evidence.parameters[:MOST]
    known = evidence.comparison
    wanted = (known.terms.id_metric, known.terms.ood)
    metrics = [metric for metric in wanted if metric in known.metric_names]
    swept = {parameter.name for parameter in parameters}
    rows = [row for row in evidence.settings if row.arm.trains and swept & set(row.arm.params)]
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
            found[axes.field(parameter)] = parameter.shown(row.arm.params[parameter.name])
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
    field, key = short(metric), axes.field(parameter)
    most = max(Counter(point[key] for point in points if key in point).values(), default=0)
    base = alt.Chart().encode(*spread.channels(parameter, most), _y(metric), signs.colour())
    hints = marks.hints("setting", (key, "~g") if parameter.numeric else key, (field, ".1f"))
    few = len(points) <= _MOST_INTERVALS
    size, opacity = (70, 1.0) if few else (26, 0.6)
    symbols = base.encode(signs.shape(), tooltip=hints)
    # What is read aloud would else name the place of a symbol, which may stand beside its value.
    aloud = alt.ExprRef(f"datum.setting + ', {titled(metric)}: ' + format(datum['{field}'], '.1f')")
    layers = [
        *levels.rules,
        *([base.mark_line(strokeWidth=1.5, aria=False)] if line else []),
        *marks.interval(base, "y", field, points),
        symbols.mark_point(filled=True, size=size, opacity=opacity, aria=few, description=aloud),
        *levels.names,
    ]
    known = f"isValid(datum['{key}']) && isValid(datum['{field}'])"
    transform = [alt.FilterTransform(filter=known), *spread.side_by_side(parameter, most)]
    return layered(layers, _HEIGHT, transform)


def _y(metric: str) -> alt.Y:
    scale = alt.Scale(zero=False, nice=True, padding=18)
    return alt.Y(**marks.number(short(metric), titled(metric), scale=scale))


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
        data = marks.data([{"setting": row.arm.label, short(metric): percent(level)}])
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


CHART = Chart(
    name="response",
    title="Response to each parameter",
    about=(
        "Each symbol is a setting, mean over seeds, with its 95 % interval where the settings are "
        "few; a line joins them where nothing else varies. Those with the same value stand side by "
        "side about it: they differ in other parameters. Dotted lines are zero-shot and the "
        "reference."
    ),
    draw=draw,
)
