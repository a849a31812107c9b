"""The context probe: how far each row has moved from the zero-shot model's sense of context."""

from __future__ import annotations

import re
from typing import Any

import altair as alt

from tracking.charts import dots, palette
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import layered, panels
from tracking.charts.measures import scaled, split_name
from tracking.charts.palette import Signs
from tracking.evidence import Evidence
from tracking.rows import Row

_TITLES = {
    "kl": "KL to the zero-shot contexts (nats)",
    "entropy": "Entropy of the contexts (nats)",
}


def draw(evidence: Evidence) -> Picture | None:
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
    layers, height = dots.dots(rows, signs, kind, _TITLES[kind], ".3f", scale=scale)
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


CHART = Chart(
    name="context",
    title="Did the sense of context survive?",
    about=(
        "What each model believes of an image's context (a sketch, an emoji), compared with the "
        "zero-shot model: KL 0 is untouched, and the larger it is, the more was forgotten there. "
        "Entropy says how undecided the model is. Means with 95 % intervals over seeds."
    ),
    draw=draw,
)
