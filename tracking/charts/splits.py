"""Differences by split, and the context probe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from tracking.charts import base, palette
from tracking.charts.base import (
    Chart,
    Picture,
    ends,
    interval,
    layered,
    panels,
    percent,
    quantitative,
    scaled,
    single,
    split_name,
    tooltips,
)
from tracking.charts.palette import Signs
from tracking.comparison.compare import Row
from tracking.comparison.metrics import NOUNS, TITLES, TOP1, capitalised
from tracking.evidence.data import Evidence

_DOT = 11
"""Pixels of height that a dot takes."""
_SPACE = 10


def dots(
    rows: Sequence[Mapping[str, Any]],
    signs: Signs,
    value: str,
    title: str,
    form: str,
    *,
    scale: alt.Scale | None = None,
) -> tuple[list[alt.Chart], int]:
    """Layers and height for rows with `setting`, `split`, the value and perhaps its interval."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    settings = list(signs.entries)
    offset = alt.YOffset("setting:N", sort=settings, scale=alt.Scale(domain=settings))
    lines = alt.Axis(grid=True, tickBand="extent", labelLimit=110)
    base = alt.Chart().encode(
        alt.Y(field="split", type="nominal", sort=splits, title=None, axis=lines),
        alt.X(**quantitative(value, title, scale=scale)),
        offset,
        signs.colour(),
    )
    hints = tooltips("setting", "split", (value, form), (f"{value} low", form))
    hints += tooltips((f"{value} high", form))
    points = base.mark_point(filled=True, size=60, opacity=1).encode(signs.shape(), tooltip=hints)
    height = len(splits) * (_DOT * len(settings) + _SPACE)
    return [*interval(base, "x", value, rows), points], height


_VALUE = "difference"


def draw_shifts(evidence: Evidence) -> Picture | None:
    """None where there is no reference, or nothing to compare with it."""
    reference, found = evidence.reference, evidence.differences
    if reference is None or not found:
        return None
    signs = palette.of_rows({part.row.arm.label: part.row for part in found}, evidence.algorithms)
    metrics = list(dict.fromkeys(part.metric for part in found))
    rows = [
        {
            "setting": part.row.arm.label,
            "split": split_name(part.metric.rpartition("/")[0]),
            _VALUE: percent(part.mean),
            "pairs": part.n,
            **ends(part.ci95, _VALUE),
        }
        for metric in metrics
        for part in found
        if part.metric == metric
    ]
    by = evidence.comparison.endpoint.by
    title = f"{capitalised(TITLES[by])} minus {reference.arm.label} (points)"
    drawn, height = dots(rows, signs, _VALUE, title, "+.2f")
    kind = "top-1 accuracy" if by == TOP1 else NOUNS[by]
    told = f"Differences in {kind} to {reference.arm.label}, by split"
    return single([base.rule_at(0, "x"), *drawn], height, told, rows)


SHIFTS = Chart(
    name="shifts",
    title="Difference on every split",
    about=(
        "Each method minus the reference, in points of accuracy, paired over seeds; right of "
        "the line is better. Bars are 95 % intervals of the paired difference, drawn from three "
        "seeds on. They are not adjusted for the number of shifts: the verdict tests their mean."
    ),
    draw=draw_shifts,
)


_TITLES = {
    "kl": "KL to the zero-shot contexts (nats)",
    "entropy": "Entropy of the contexts (nats)",
}


def draw_context(evidence: Evidence) -> Picture | None:
    """None where no run was probed."""
    probed = sorted(
        {
            match[1]
            for name in evidence.comparison.metric_names
            if (match := re.fullmatch(r"context/(id/test|ood/.+)/kl", name))
        }
    )
    rows = [
        found
        for split in probed
        for row in evidence.on_show
        if len(found := _point(row, split)) > 2
    ]
    if not rows:
        return None
    labels = {row["setting"] for row in rows}
    shown = {row.arm.label: row for row in evidence.on_show if row.arm.label in labels}
    signs = palette.of_rows(shown, evidence.algorithms)
    charts = [_panel(rows, signs, kind) for kind in _TITLES if any(kind in row for row in rows)]
    told = f"The context distribution of {len(labels)} models on {len(probed)} splits"
    return panels(charts, told, margin=130, least=420, rows=rows)


def _panel(rows: list[dict[str, Any]], signs: Signs, kind: str) -> alt.LayerChart:
    scale = alt.Scale(zero=True, nice=False, padding=8) if kind == "kl" else None
    layers, height = dots(rows, signs, kind, _TITLES[kind], ".3f", scale=scale)
    return layered(layers, height)


def _point(row: Row, split: str) -> dict[str, Any]:
    """Setting and split, and what was measured there."""
    found: dict[str, Any] = {"setting": row.arm.label, "split": split_name(split)}
    for kind in _TITLES:
        metric = f"context/{split}/{kind}"
        told = row.metric(metric)
        if told.mean is not None:
            found[kind] = scaled(metric, told.mean)
        if told.ci95 is not None:
            found[f"{kind} low"] = scaled(metric, told.ci95.low)
            found[f"{kind} high"] = scaled(metric, told.ci95.high)
    return found


CONTEXT = Chart(
    name="context",
    title="Did the sense of context survive?",
    about=(
        "What each model believes of an image's context (a sketch, an emoji), compared with the "
        "zero-shot model: KL 0 is untouched, and the larger it is, the more was forgotten there. "
        "Entropy says how undecided the model is. Means with 95 % intervals over seeds."
    ),
    draw=draw_context,
)
