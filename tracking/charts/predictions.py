"""Accuracy by class, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from tracking.charts import palette
from tracking.charts.base import (
    Chart,
    Picture,
    ends,
    inline_data,
    interval,
    layered,
    panels,
    percent,
    quantitative,
    rule_at,
    single,
    split_name,
    tooltips,
)
from tracking.charts.palette import NEUTRAL, Signs
from tracking.comparison.statistics import t_interval
from tracking.evidence.data import Evidence
from tracking.evidence.predictions import ID_SPLIT, MEAN, ClassDifferences, Reliability

MOST = 10
"""Classes that gain, and as many that lose."""
_DOT, _SPACE = 5, 8
"""Pixels of height that a dot takes, and between classes: equal differences hide no dot."""
_VALUE = "difference"


def draw_classes(evidence: Evidence) -> Picture | None:
    """None where the predictions of the reference or of all others are not kept."""
    reference, parts = evidence.reference, evidence.class_differences
    if reference is None or not parts:
        return None
    lead = _lead(evidence, parts)
    splits = list(dict.fromkeys(part.split for part in parts if part.row.arm.label == lead))
    rows = [row for split in splits for row in _of_split(evidence, parts, lead, split)]
    shown = {part.row.arm.label: part.row for part in parts}
    signs = palette.of_rows(shown, evidence.algorithms)
    names, settings = [split_name(split) for split in splits], list(signs.entries)
    chooser = alt.binding_select(options=names, name="Split: ")
    choice = alt.param(name="split", value=names[0], bind=chooser)
    base = (
        alt.Chart()
        .transform_filter("datum.split == split")
        .encode(
            alt.Y(
                "class:N",
                sort=alt.EncodingSortField("rank", op="min"),
                title=None,
                axis=alt.Axis(grid=True, tickBand="extent", labelLimit=120),
            ),
            alt.YOffset("setting:N", sort=settings, scale=alt.Scale(domain=settings)),
            alt.X(**quantitative(_VALUE, f"Top-1 minus {reference.arm.label} (points)")),
            signs.colour(),
        )
    )
    hints = tooltips("setting", "class", (_VALUE, "+.1f"), ("images", "d"))
    most = max(len({row["class"] for row in rows if row["split"] == name}) for name in names)
    height = most * (_DOT * len(settings) + _SPACE)
    layers = [
        rule_at(0, "x"),
        *interval(base, "x", _VALUE, rows),
        base.mark_point(filled=True, size=70, opacity=0.9).encode(signs.shape(), tooltip=hints),
    ]
    told = f"Classes that gain and lose most against {reference.arm.label}"
    return single(layers, height, told, rows).add_params(choice)


def _lead(evidence: Evidence, parts: Sequence[ClassDifferences]) -> str:
    """The row whose gains and losses are sought out: the selected one, else one that is trained."""
    arms = {part.row.arm.label: part.row.arm for part in parts}
    if evidence.selected is not None:
        wanted = evidence.selected.arm
        for label, arm in arms.items():  # The same setting may be there on fresh seeds.
            if (arm.algorithm, arm.params, arm.merge) == (
                wanted.algorithm,
                wanted.params,
                wanted.merge,
            ):
                return label
    trained = [label for label, arm in arms.items() if arm.trains and arm.merge is None]
    return trained[-1] if trained else next(iter(arms))


def _of_split(
    evidence: Evidence, parts: Sequence[ClassDifferences], lead: str, split: str
) -> list[dict[str, Any]]:
    ours = [part for part in parts if part.split == split]
    leader = next(part for part in ours if part.row.arm.label == lead)
    return [
        _point(evidence, part, number, rank, leads=part is leader)
        for rank, number in enumerate(_extremes(leader))
        for part in ours
        if number < part.values.shape[1] and np.isfinite(part.values[:, number]).all()
    ]


def _extremes(part: ClassDifferences) -> list[int]:
    """The classes with the largest differences, gains first; of equal ones the first."""
    mean = part.values.mean(axis=0)
    there = np.flatnonzero(np.isfinite(mean))
    order = there[np.argsort(-mean[there], kind="stable")]
    if len(order) > 2 * MOST:
        order = np.concatenate([order[:MOST], order[-MOST:]])
    return [int(number) for number in order]


def _point(
    evidence: Evidence, part: ClassDifferences, number: int, rank: int, *, leads: bool
) -> dict[str, Any]:
    values = [float(value) for value in part.values[:, number]]
    return {
        "split": split_name(part.split),
        "class": evidence.class_name(number),
        "rank": rank,
        "setting": part.row.arm.label,
        _VALUE: percent(sum(values) / len(values)),
        "images": int(part.images[number]),
        **(ends(t_interval(values), _VALUE) if leads else {}),
    }


CLASSES = Chart(
    name="classes",
    title="Difference by class",
    about=(
        "The ten classes that the selected method gains most in against the reference and the ten "
        "it loses most in, mean over shifts or on the split chosen below the chart, with its 95 % "
        "intervals over seeds. These are the extremes of many classes with few images each: part "
        "of them is chance."
    ),
    draw=draw_classes,
)


_HEIGHT, _LOW = 260, 90
_FIELD = "setting and ECE"


def draw_calibration(evidence: Evidence) -> Picture | None:
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
    perfect = alt.Chart(inline_data(ends)).mark_line(
        color=NEUTRAL, strokeDash=[2, 2], strokeWidth=1.5, aria=False
    )
    base = alt.Chart(inline_data(rows), title=title).encode(_x(), y, signs.colour())
    size = alt.Size("share:Q", scale=alt.Scale(domain=[0, 20], range=[8, 110], clamp=True))
    size["legend"] = None
    hints = tooltips(_FIELD, ("confidence", ".1f"), ("accuracy", ".1f"), ("images", "d"))
    drawn = [
        perfect.encode(_x(), y),
        base.mark_line(strokeWidth=1.5, aria=False).encode(signs.dash()),
        base.mark_point(filled=True, opacity=1).encode(signs.shape(), size, tooltip=hints),
    ]
    return layered(drawn, _HEIGHT)


def _shares(title: str, rows: list[dict[str, Any]], signs: Signs) -> alt.LayerChart:
    """Steps over the bins, since bars of several rows would hide each other."""
    middle = alt.Chart(inline_data(rows)).transform_calculate(middle="(datum.low + datum.high) / 2")
    lines = middle.mark_line(interpolate="step", strokeWidth=1.5, aria=False)
    hints = tooltips(_FIELD, ("low", ".1f"), ("high", ".1f"), ("share", ".1f"), ("images", "d"))
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


CALIBRATION = Chart(
    name="calibration",
    title="Calibration",
    about=(
        "How often a model is right at each confidence, in fifteen bins: on the dotted line it "
        "knows how sure it may be, below it is too sure. All seeds together; on OOD each shift "
        "counts the same; the larger a symbol, the more images. ECE is the mean over seeds, as in "
        "the table. Below: where its images lie."
    ),
    draw=draw_calibration,
)
