"""Reliability: how often a row is right at each confidence, and how many images lie there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from tracking.charts import marks, palette
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import layered, panels
from tracking.charts.measures import percent, split_name
from tracking.charts.palette import NEUTRAL, Signs
from tracking.evidence import Evidence
from tracking.evidence.classes import ID_SPLIT, MEAN
from tracking.evidence.reliability import Reliability

_HEIGHT, _LOW = 260, 90
_FIELD = "setting and ECE"


def draw(evidence: Evidence) -> Picture | None:
    """None where no row on show keeps its predictions."""
    parts = {
        where: [found for found in evidence.reliability if found.where == where]
        for where in (ID_SPLIT, MEAN)
    }
    drawn = [(where, found) for where, found in parts.items() if found]
    if not drawn:
        return None
    legends = [
        palette.of_rows({_named(part): part.row for part in found}, evidence.algorithms, _FIELD)
        for _, found in drawn
    ]
    rows = [_rows(found) for _, found in drawn]
    titles = [split_name(where) for where, _ in drawn]
    each = list(zip(titles, rows, legends, strict=True))
    charts = [_diagram(*one) for one in each] + [_shares(*one) for one in each]
    told = f"Accuracy by confidence on {' and '.join(titles)}"
    return panels(charts, told, independent=["color", "shape", "strokeDash"])


def _named(part: Reliability) -> str:
    return f"{part.row.arm.label}, ECE {100 * part.ece:.1f} %"


def _rows(parts: Sequence[Reliability]) -> list[dict[str, Any]]:
    return [
        {
            _FIELD: _named(part),
            "confidence": percent(found.confidence),
            "accuracy": percent(found.accuracy),
            "images": found.images,
            "share": percent(found.share),
            "low": percent(found.low),
            "high": percent(found.high),
        }
        for part in parts
        for found in part.bins
    ]


def _x() -> alt.X:
    scale = alt.Scale(domain=[0, 100])
    return alt.X("confidence:Q", title="confidence (%)", scale=scale)


def _diagram(title: str, rows: list[dict[str, Any]], signs: Signs) -> alt.LayerChart:
    y = alt.Y("accuracy:Q", title="accuracy (%)", scale=alt.Scale(domain=[0, 100]))
    ends = [{"confidence": end, "accuracy": end} for end in (0, 100)]
    perfect = alt.Chart(marks.data(ends)).mark_line(
        color=NEUTRAL, strokeDash=[2, 2], strokeWidth=1.5, aria=False
    )
    base = alt.Chart(marks.data(rows), title=title).encode(_x(), y, signs.colour())
    size = alt.Size("share:Q", scale=alt.Scale(domain=[0, 20], range=[8, 110], clamp=True))
    size["legend"] = None
    hints = marks.hints(_FIELD, ("confidence", ".1f"), ("accuracy", ".1f"), ("images", "d"))
    drawn = [
        perfect.encode(_x(), y),
        base.mark_line(strokeWidth=1.5, aria=False).encode(signs.dash()),
        base.mark_point(filled=True, opacity=1).encode(signs.shape(), size, tooltip=hints),
    ]
    return layered(drawn, _HEIGHT)


def _shares(title: str, rows: list[dict[str, Any]], signs: Signs) -> alt.LayerChart:
    """Steps over the bins, since bars of several rows would hide each other."""
    middle = alt.Chart(marks.data(rows)).transform_calculate(middle="(datum.low + datum.high) / 2")
    lines = middle.mark_line(interpolate="step", strokeWidth=1.5, aria=False)
    hints = marks.hints(_FIELD, ("low", ".1f"), ("high", ".1f"), ("share", ".1f"), ("images", "d"))
    lines = lines.encode(
        alt.X(
            field="middle",
            type="quantitative",
            title=f"confidence (%), {title}",
            scale=alt.Scale(domain=[0, 100]),
        ),
        alt.Y("share:Q", title="images (%)", axis=alt.Axis(tickCount=3)),
        signs.colour(legend=False),
        signs.dash(),
        tooltip=hints,
    )
    return layered([lines], _LOW)


CHART = Chart(
    name="calibration",
    title="Calibration",
    about=(
        "How often a model is right at each confidence, in fifteen bins: on the dotted line it "
        "knows how sure it may be, below it is too sure. All seeds together; on OOD each shift "
        "counts the same; the larger a symbol, the more images. ECE is the mean over seeds, as in "
        "the table. Below: where its images lie."
    ),
    draw=draw,
)
