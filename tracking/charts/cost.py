"""What it cost: seconds of training, images per second, and runs by how they ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from tracking.charts import marks, palette
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import layered, panels
from tracking.charts.palette import NEUTRAL, Signs
from tracking.evidence import Evidence
from tracking.statistics import mean

_BAR = 34
_SPACE = "indexof(datum.label, ' ')"
_TWO_LINES = alt.Axis(
    labelLimit=140,
    labelExpr=f"{_SPACE} < 0 ? datum.label : "
    f"[slice(datum.label, 0, {_SPACE}), slice(datum.label, {_SPACE} + 1)]",
)
"""The algorithm above its setting, which is too long for a phone beside it."""
_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
_OPACITY: Mapping[str, float] = {
    "done": 1.0,
    "pruned": 0.7,
    "stopped": 0.55,
    "failed": 0.4,
    "running": 0.3,
    "missing": 0.15,
}
"""Of a bar's part by the state of its runs, in the order of the parts."""


def draw(evidence: Evidence) -> Picture | None:
    """None where nothing is trained."""
    if not evidence.runs:
        return None
    charts: list[alt.Chart | alt.LayerChart] = [*_settings(evidence), _runs(evidence)]
    told = f"Cost of {sum(part.count for part in evidence.runs)} runs"
    return panels(charts, told, most=3, margin=150, least=360, independent=["color"])


def _settings(evidence: Evidence) -> list[alt.LayerChart]:
    if not evidence.cost:
        return []
    signs = palette.of_rows(
        {item.row.arm.label: item.row for item in evidence.cost}, evidence.algorithms
    )
    longest = max(max(item.seconds) for item in evidence.cost)
    factor, unit = next((size, name) for size, name in _UNITS if longest >= size or size == 1)
    time, speed = f"training per run ({unit})", "images per second"
    rows: list[dict[str, Any]] = [
        {
            "setting": item.row.arm.label,
            time: round(mean(item.seconds) / factor, 3),
            f"{time} low": round(min(item.seconds) / factor, 3),
            f"{time} high": round(max(item.seconds) / factor, 3),
            "epochs": item.epochs,
            "runs": len(item.seconds),
            **({} if item.images_per_s is None else {speed: round(item.images_per_s, 1)}),
        }
        for item in evidence.cost
    ]
    return [
        _bars(rows, signs, field) for field in (time, speed) if any(field in row for row in rows)
    ]


def _bars(rows: list[dict[str, Any]], signs: Signs, field: str) -> alt.LayerChart:
    base = alt.Chart(marks.data(rows)).encode(
        alt.Y("setting:N", sort=list(signs.entries), title=None, axis=_TWO_LINES),
        alt.X(**marks.number(field, field, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))),
    )
    hints = marks.hints("setting", (field, ".3~g"), ("epochs", "d"), ("runs", "d"))
    bars = base.mark_bar().encode(signs.colour(legend=False), tooltip=hints)
    return layered([bars, *marks.interval(base, "x", field, rows)], _BAR * len(rows))


def _runs(evidence: Evidence) -> alt.Chart:
    rows = [
        {
            "algorithm": part.algorithm,
            "state": part.state,
            "runs": part.count,
            "rank": list(_OPACITY).index(part.state),
        }
        for part in evidence.runs
    ]
    names = list(dict.fromkeys(part.algorithm for part in evidence.runs))
    colours = [palette.colour_of(name, evidence.algorithms) for name in names]
    states = [state for state in _OPACITY if any(row["state"] == state for row in rows)]
    paler = alt.Scale(type="ordinal", domain=states, range=[_OPACITY[s] for s in states])
    legend = alt.Legend(orient="bottom", title=None, symbolFillColor=NEUTRAL)
    shown = legend if len(states) > 1 else None
    bars: alt.Chart = (
        alt.Chart(marks.data(rows), height=_BAR * len(names))
        .mark_bar()
        .encode(
            alt.Y("algorithm:N", sort=names, title=None, axis=alt.Axis(labelLimit=130)),
            alt.X(
                "runs:Q", title="runs", axis=alt.Axis(tickMinStep=1, format="d", labelFlush=False)
            ),
            alt.Color("algorithm:N", scale=alt.Scale(domain=names, range=colours), legend=None),
            alt.Opacity("state:N", sort=states, scale=paler, legend=shown),
            alt.Order("rank:Q"),
            tooltip=marks.hints("algorithm", "state", ("runs", "d")),
        )
    )
    return bars


CHART = Chart(
    name="cost",
    title="Cost",
    about=(
        "Training of one run without evaluation, mean over seeds with the range behind it, on the "
        "machine that did it: runs that shared it slowed each other. Merges cost no training. The "
        "number of runs says how much was spent on tuning each algorithm."
    ),
    draw=draw,
)
