"""ID against OOD accuracy, with the Pareto front and WiSE-FT curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

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
    percent,
    quantitative,
    seed_dots,
    seed_rows,
    single,
    titled,
    tooltips,
    with_halo,
)
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.labels import (
    FONT_SIZE,
    Box,
    Label,
    place_labels,
    sample_line,
    square,
)
from carft_sweep.tracking.charts.palette import NEUTRAL, Legend
from carft_sweep.tracking.comparison.compare import Row
from carft_sweep.tracking.comparison.metrics import TOP1, named
from carft_sweep.tracking.comparison.runs import scalar_text, split_merge
from carft_sweep.tracking.comparison.statistics import Estimate
from carft_sweep.tracking.comparison.wise_ft import WISE, Curve

_HEIGHT = 420
_WIDE, _NARROW = 640, 290
"""Pixels of the plots for which words are placed: in a wider one they only have more room."""
_NARROWEST_WIDE = 420
"""Pixels of the narrowest plot with the words of a wide one."""
_SEED = 2.0
"""Pixels of half a dot of a seed."""
_SMALL, _LARGE, _RING = 40, 100, 260
"""Square pixels of other settings, of what stands for an algorithm, and of the ring around those on
the front."""
_FEWEST_TICKS, _MOST_TICKS = 4, 12
_MOST_LABELS = 40
"""Settings beyond which none but those on show are named."""
_NAME, _DISTANCE, _ALPHA, _MERGE, _SETTING = "name", "distance", "alpha", "merge", "setting"
"""Kinds of words, in the order in which they choose their places."""
_Rows = list[dict[str, Any]]


class _Range(NamedTuple):
    """The part of an axis that is shown, in percent."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Range:
        """Enclose values with a margin in which words have room."""
        margin = 0.06 * (max(values) - min(values)) or 1.0
        return cls(min(values) - margin, max(values) + margin)

    @property
    def ticks(self) -> list[float]:
        """Choose whole points where they are few, else a round step."""
        span = self.high - self.low
        steps = (1.0, 2.0, 5.0, 10.0) if span >= _FEWEST_TICKS else (0.1, 0.2, 0.5)
        step = next((step for step in steps if span / step <= _MOST_TICKS), steps[-1])
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(step * count, 1) for count in range(first, last + 1)]

    def share(self, value: float) -> float:
        """Return where a value lies, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


_WHOLE = _Range(0.0, 100.0)


@dataclass(frozen=True)
class _Axes:
    """The metrics to the right and upwards, whose values rows hold under their names."""

    id_metric: str
    ood_metric: str
    id_range: _Range = _WHOLE
    ood_range: _Range = _WHOLE
    width: int = _WIDE

    @property
    def id(self) -> str:
        return named(self.id_metric)

    @property
    def ood(self) -> str:
        return named(self.ood_metric)

    @property
    def x(self) -> alt.X:
        return alt.X(**_channel(self.id, self.id_metric, self.id_range))

    @property
    def y(self) -> alt.Y:
        return alt.Y(**_channel(self.ood, self.ood_metric, self.ood_range))

    @property
    def of_a_seed(self) -> tuple[alt.X, alt.Y]:
        return (
            alt.X(**_channel(self.id + OF_A_SEED, self.id_metric, self.id_range)),
            alt.Y(**_channel(self.ood + OF_A_SEED, self.ood_metric, self.ood_range)),
        )

    def around(self, models: _Rows) -> _Axes:
        """Return the same axes, as long as the models, their intervals and seeds need."""
        ranges = [
            _Range.of(
                [
                    row[at]
                    for row in models
                    for at in (name, f"{name} low", f"{name} high", name + OF_A_SEED)
                    if at in row
                ]
            )
            for name in (self.id, self.ood)
        ]
        return replace(self, id_range=ranges[0], ood_range=ranges[1])

    def pixels(self, id_accuracy: float, ood: float) -> tuple[float, float]:
        """Return the place in a plot of this width."""
        x, y = self.id_range.share(id_accuracy), self.ood_range.share(ood)
        return self.width * x, _HEIGHT * (1 - y)


def _channel(field: str, metric: str, shown: _Range) -> dict[str, Any]:
    scale = alt.Scale(domain=[*shown], nice=False, zero=False)
    axis = alt.Axis(values=shown.ticks, format="~f", labelOverlap=True)
    return quantitative(field, titled(metric), scale=scale, axis=axis)


def draw_id_ood(data: ChartData) -> Picture | None:
    """Draw every model as a point; None where no model has both accuracies."""
    endpoint = data.comparison.endpoint
    axes = _Axes(endpoint.id_metric, endpoint.ood)
    models = _model_rows(data, axes)
    if not models:
        return None
    of_seeds = _seed_rows(data, axes)
    axes = axes.around([*models, *of_seeds])
    legend = _legend(data, models)
    curves, distances = _curve_rows(data, legend, axes), _distance_rows(data, axes)
    layers: list[alt.Chart | alt.LayerChart] = [
        *_draw_curves(curves, legend, axes),
        *_draw_distances(distances, axes),
        *seed_dots(of_seeds, *axes.of_a_seed, legend.colour()),
        *_draw_models(models, legend, axes),
        *(
            _draw_labels(_label_rows(data, at, models, curves, distances, of_seeds), at)
            for at in (axes, replace(axes, width=_NARROW))
        ),
    ]
    kind = "" if endpoint.by != TOP1 else " accuracy"
    description = f"{axes.id} against {axes.ood}{kind} of {len(models)} models"
    chart = single(layers, _HEIGHT, description, models)
    titles = max((list(_setting_values(data, row)) for row in data.settings), key=len, default=[])
    if len(titles) < 2 or len(data.settings) > _MOST_LABELS:
        return chart
    text = f"Beside small symbols: {', '.join(titles)}"
    words = alt.TitleParams(text, anchor="start", fontSize=FONT_SIZE, fontWeight="normal")
    return chart.properties(title=words)


def pareto_front(points: Iterable[tuple[float, float]]) -> set[tuple[float, float]]:
    """Return the points that no other one reaches on both coordinates and beats on one."""
    front: set[tuple[float, float]] = set()
    highest = float("-inf")
    for x, y in sorted(set(points), reverse=True):
        if y > highest:
            front.add((x, y))
            highest = y
    return front


def _model_rows(data: ChartData, axes: _Axes) -> _Rows:
    """List every setting, what stands for its merges, and the inner points of the curves."""
    shown = {row.arm.label for row in data.shown}
    models: dict[str, dict[str, Any]] = {}
    for row in (*data.settings, *data.shown):
        label, id_test, ood = row.arm.label, row.metric(axes.id_metric), row.metric(axes.ood_metric)
        if id_test.mean is not None and ood.mean is not None:
            models[label] = {
                "setting": label,
                "series": _series(row.arm.algorithm, row.arm.merge),
                axes.id: percent(id_test.mean),
                axes.ood: percent(ood.mean),
                "on show": label in shown,
                "runs": row.n,
                **(_intervals(id_test, ood, axes) if label in shown else {}),
            }
    algorithms = {row.arm.label: row.arm.algorithm for row in data.comparison.rows}
    for curve in data.comparison.curves:
        for point in curve.points:
            merge = f"{WISE}@{point.alpha:g}"
            label = f"{curve.label} + {merge}"
            if 0 < point.alpha < 1 and label not in models:
                models[label] = {
                    "setting": label,
                    "series": _series(algorithms[curve.label], merge),
                    axes.id: percent(point.id),
                    axes.ood: percent(point.ood),
                    "on show": False,
                }
    front = pareto_front((model[axes.id], model[axes.ood]) for model in models.values())
    return [
        {**model, "front": (model[axes.id], model[axes.ood]) in front} for model in models.values()
    ]


def _seed_rows(data: ChartData, axes: _Axes) -> _Rows:
    """List the seeds of each row on show."""
    rows: _Rows = []
    for row in data.shown:
        place = {"setting": row.arm.label, "series": _series(row.arm.algorithm, row.arm.merge)}
        values = {
            axes.id: row.metric(axes.id_metric).values,
            axes.ood: row.metric(axes.ood_metric).values,
        }
        rows += seed_rows(place, values)
    return rows


def _intervals(id_test: Estimate, ood: Estimate, axes: _Axes) -> dict[str, Any]:
    ends: dict[str, Any] = {}
    for kind, name, summary in (("ID", axes.id, id_test), ("OOD", axes.ood, ood)):
        if summary.ci95 is not None:
            low, high = 100 * summary.ci95.low, 100 * summary.ci95.high
            ends |= interval_ends(summary.ci95, name)
            ends[f"interval of {kind}"] = f"{low:.1f} to {high:.1f}"
    return ends


def _series(algorithm: str, merge: str | None) -> str:
    return algorithm if merge is None else f"{algorithm} + {split_merge(merge)[0]}"


def _legend(data: ChartData, models: _Rows) -> Legend:
    drawn = dict.fromkeys(model["series"] for model in models)
    every = {
        _series(row.arm.algorithm, merge): (row.arm.algorithm, merge is not None)
        for row in data.comparison.rows
        for merge in (row.arm.merge, WISE)
    }
    ordered = sorted(drawn, key=lambda text: (data.algorithms.index(every[text][0]), every[text]))
    legend = palette.legend_of_series({text: every[text] for text in ordered}, data.algorithms)
    return replace(legend, orient="top")


def _draw_models(rows: _Rows, legend: Legend, axes: _Axes) -> list[alt.Chart]:
    place = Marks().encode(axes.x, axes.y)
    hints = tooltips(
        "setting", (axes.id, ".1f"), (axes.ood, ".1f"), ("runs", "d"), "interval of ID"
    )
    points = place.encode(*legend.symbols(), tooltip=[*hints, *tooltips("interval of OOD")])
    others = points.transform_filter("!datum['on show']")
    rings = place.transform_filter("datum.front")
    return [
        *interval_rules(place.encode(legend.colour()), "x", axes.id, rows),
        *interval_rules(place.encode(legend.colour()), "y", axes.ood, rows),
        others.mark_point(filled=False, size=_SMALL, opacity=0.9, aria=False),
        points.transform_filter("datum['on show']").mark_point(
            filled=False, size=_LARGE, opacity=1
        ),
        rings.mark_point(filled=False, size=_RING, color=NEUTRAL, strokeWidth=1.5, aria=False),
    ]


def _reference_curve(data: ChartData) -> Curve | None:
    if data.reference is None:
        return None
    setting = data.reference.setting
    return next((curve for curve in data.comparison.curves if curve.label == setting), None)


def _curve_rows(data: ChartData, legend: Legend, axes: _Axes) -> _Rows:
    """List the points of every curve by rising alpha, the reference's first."""
    algorithms = {row.arm.label: row.arm.algorithm for row in data.comparison.rows}
    reference = _reference_curve(data)
    curves = sorted(data.comparison.curves, key=lambda curve: curve is not reference)
    rows: _Rows = [
        {
            "curve": curve.label,
            "series": _series(algorithms[curve.label], WISE),
            "alpha": point.alpha,
            axes.id: percent(point.id),
            axes.ood: percent(point.ood),
        }
        for curve in curves
        for point in curve.points
    ]
    return [row for row in rows if row["series"] in legend.styles]


def _draw_curves(rows: _Rows, legend: Legend, axes: _Axes) -> list[alt.Chart]:
    if not rows:
        return []
    lines = Marks(inline_data(rows)).mark_line(strokeWidth=2, strokeDash=[6, 3], aria=False)
    return [
        lines.encode(axes.x, axes.y, legend.colour(), alt.Detail("curve:N"), alt.Order("alpha:Q"))
    ]


def _distance_rows(data: ChartData, axes: _Axes) -> _Rows:
    """List the rows on show that have a distance to the reference's curve, and where it ends."""
    rows: _Rows = []
    for row in data.shown:
        id_test, ood = row.metric(axes.id_metric).mean, row.metric(axes.ood_metric).mean
        distance = None if row.above_curve is None else row.above_curve.mean
        if id_test is None or ood is None or distance is None:
            continue
        rows.append(
            {
                "setting": row.arm.label,
                axes.id: percent(id_test),
                axes.ood: percent(ood),
                "curve": percent(ood - distance),
                "middle": percent(ood - distance / 2),
                "distance": percent(distance),
            }
        )
    return rows


def _draw_distances(rows: _Rows, axes: _Axes) -> list[alt.Chart]:
    if not rows:
        return []
    base = Marks(inline_data(rows)).encode(axes.x)
    rules = base.mark_rule(color=NEUTRAL, strokeWidth=1.5).encode(
        axes.y, alt.Y2(field="curve"), tooltip=tooltips("setting", ("distance", "+.2f"))
    )
    return [rules]


def _label_rows(
    data: ChartData,
    axes: _Axes,
    models: _Rows,
    curves: _Rows,
    distances: _Rows,
    of_seeds: _Rows,
) -> _Rows:
    """List the words of the chart, each beside what it names, as far as there is room.

    Names of what stands for an algorithm and distances; in a wide plot alphas, other merges, and
    what is special to the other settings.
    """
    unmerged = {row.arm.label: row for row in data.settings}
    radii = {_place(row, axes): _radius(row) for row in models}
    shown = {row.arm.label for row in data.shown if row.arm.merge is None}
    not_shown = unmerged.keys() - shown
    others = [row for row in models if row["setting"] in not_shown]
    words = [(_NAME, row, str(row["setting"])) for row in models if row["setting"] in shown]
    for row in distances:
        # Rounded before it is written, a distance just below zero has no minus.
        number = f"{round(row['distance'], 1) + 0.0:+.1f}"
        words.append((_DISTANCE, {**row, axes.ood: row["middle"]}, number))
    if axes.width > _NARROW:
        words += [(_ALPHA, row, f"α {row['alpha']:g}") for row in curves if 0 < row["alpha"] < 1]
        merged = [row.arm for row in data.shown if row.arm.merge is not None]
        on_curves = {f"{row['curve']} + {WISE}@{row['alpha']:g}" for row in curves}
        apart = {arm.label: f"+ {arm.merge}" for arm in merged if arm.label not in on_curves}
        words += [(_MERGE, row, apart[key]) for row in models if (key := row["setting"]) in apart]
    if axes.width > _NARROW and len(data.settings) <= _MOST_LABELS:
        texts = [_setting_text(_setting_values(data, unmerged[row["setting"]])) for row in others]
        words += [(_SETTING, row, text) for row, text in zip(others, texts, strict=True) if text]
    labels = [
        Label(
            text,
            *axes.pixels(*_place(row, axes)),
            gap=radii.get(_place(row, axes), 1.0) + 4,
            required=kind in (_NAME, _DISTANCE),
        )
        for kind, row, text in words
    ]
    points = [square(*axes.pixels(*place), radius) for place, radius in radii.items()]
    lines = [*_line_boxes(axes, models, curves, distances)]
    lines += [
        square(*axes.pixels(row[axes.id + OF_A_SEED], row[axes.ood + OF_A_SEED]), _SEED)
        for row in of_seeds
    ]
    offsets = place_labels(labels, points, lines, Box(0, 0, axes.width, _HEIGHT))
    return [
        {
            "label": text,
            "kind": kind,
            "bold": kind in (_NAME, _DISTANCE),
            axes.id: row[axes.id],
            axes.ood: row[axes.ood],
            **offset._asdict(),
        }
        for (kind, row, text), offset in zip(words, offsets, strict=True)
        if offset is not None
    ]


def _place(row: Mapping[str, Any], axes: _Axes) -> tuple[float, float]:
    return row[axes.id], row[axes.ood]


def _radius(row: Mapping[str, Any]) -> float:
    return math.sqrt(_RING if row["front"] else _LARGE if row["on show"] else _SMALL) / 2


def _setting_values(data: ChartData, row: Row) -> dict[str, str]:
    """Return what is special to a setting: its varied parameters, by their titles."""
    varied = sorted(data.parameters, key=lambda parameter: parameter.name)
    params = row.arm.params
    return {each.title: scalar_text(params[each.name]) for each in varied if each.name in params}


def _setting_text(values: Mapping[str, str]) -> str:
    """Write `kl_weight=0.1`, or of several parameters the values alone."""
    if len(values) == 1:
        return "".join(f"{title}={value}" for title, value in values.items())
    return ", ".join(values.values())


def _line_boxes(axes: _Axes, models: _Rows, curves: _Rows, distances: _Rows) -> Iterator[Box]:
    """Cover the intervals, the curves, and the distances."""
    for row in models:
        x, y = _place(row, axes)
        if (low := f"{axes.id} low") in row:
            yield from sample_line(axes.pixels(row[low], y), axes.pixels(row[f"{axes.id} high"], y))
        if (low := f"{axes.ood} low") in row:
            yield from sample_line(
                axes.pixels(x, row[low]), axes.pixels(x, row[f"{axes.ood} high"])
            )
    for one, two in pairwise(curves):
        if one["curve"] == two["curve"]:
            yield from sample_line(axes.pixels(*_place(one, axes)), axes.pixels(*_place(two, axes)))
    for row in distances:
        x, y = _place(row, axes)
        yield from sample_line(axes.pixels(x, y), axes.pixels(x, row["curve"]))


def _draw_labels(rows: _Rows, axes: _Axes) -> alt.LayerChart:
    """Draw the words where they were placed, if the plot is as wide as that."""
    is_wide = f"width >= {_NARROWEST_WIDE}"
    place: dict[str, Any] = {name: alt.ExprRef(f"datum.{name}") for name in ("dx", "dy", "align")}
    place["opacity"] = alt.ExprRef(f"({is_wide}) == {json.dumps(axes.width > _NARROW)} ? 1 : 0")
    base = Marks().encode(axes.x, axes.y, alt.Text("label:N"))
    layers = [
        layer
        for bold in (False, True)
        for layer in with_halo(
            base.transform_filter(f"datum.bold === {json.dumps(bold)}"),
            baseline="middle",
            fontSize=FONT_SIZE,
            fontWeight="bold" if bold else "normal",
            **place,
        )
    ]
    # By a name of its own it is not among the numbers behind the chart.
    return alt.LayerChart(
        data=alt.InlineData(values=rows, name=f"words-{axes.width}"), layer=layers
    )


ID_OOD = Chart(
    name="id_ood",
    title="ID against OOD accuracy",
    about=(
        "Every setting, mean over seeds: further right is better in distribution, further up is "
        "better under shift. Large symbols stand for their algorithms, with 95 % intervals over "
        "seeds and, up to ten seeds, a dot for each; hollow ones are merged, and the dashed lines "
        "are WiSE-FT curves with their alphas. "
        "A ring marks the Pareto front, which no other model beats on both; an "
        "upright line with a number is the distance of the verdict, in points: the mean over seeds "
        "of that to the most that each seed's own WiSE-FT curve of the reference may give at equal "
        "ID accuracy."
    ),
    draw=draw_id_ood,
)
