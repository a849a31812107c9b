"""Charts of differences by split and of the context distribution."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    rule_at,
    single,
    split_name,
    tooltips,
)
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.palette import Legend
from carft_sweep.tracking.comparison.compare import Row
from carft_sweep.tracking.comparison.metrics import NOUNS, TITLES, TOP1, capitalised, shifts

_DOT = 11
"""Pixels of height that a dot takes."""
_SPACE = 10
_VALUE, _SEED = "difference", "difference of a seed"
_MOST_SEEDS = 10
"""Up to so many seeds each seed has a dot, which says more than an interval."""


def draw_shifts(data: ChartData) -> Picture | None:
    """Draw each row's difference from the reference by split; None without a reference or rows."""
    reference, endpoint = data.reference, data.comparison.endpoint
    if reference is None:
        return None
    every = shifts(data.comparison.metric_names, endpoint.by)
    metrics = [endpoint.id_metric, endpoint.ood, *(metric for metric, _ in every)]
    others = [row for row in data.shown if row.arm.label != reference.arm.label]
    rows, of_seeds = list[dict[str, Any]](), list[dict[str, Any]]()
    compared = set()
    for metric in metrics:
        for row in others:
            test = data.comparison.pair(row.arm, reference.arm).test(metric)
            if test is not None:
                compared.add(row.arm.label)
                place = {"setting": row.arm.label, "split": split_name(metric.rpartition("/")[0])}
                if 1 < len(test.differences) <= _MOST_SEEDS:
                    of_seeds += [{**place, _SEED: percent(gap)} for gap in test.differences]
                rows.append(
                    {
                        **place,
                        _VALUE: percent(test.mean),
                        "pairs": len(test.differences),
                        **interval_ends(test.ci95, _VALUE),
                    }
                )
    if not rows:
        return None
    in_order = (row for row in others if row.arm.label in compared)
    legend = palette.legend_of_rows(in_order, data.algorithms)
    title = f"{capitalised(TITLES[endpoint.by])} minus {reference.arm.label} (points)"
    dots, height = _dots(rows, legend, _VALUE, title, "+.2f", of_seeds=of_seeds)
    kind = "top-1 accuracy" if endpoint.by == TOP1 else NOUNS[endpoint.by]
    description = f"Differences in {kind} to {reference.arm.label}, by split"
    return single([rule_at(0, "x"), *dots], height, description, rows)


def _dots(
    rows: Sequence[Mapping[str, Any]],
    legend: Legend,
    value: str,
    title: str,
    number_format: str,
    *,
    scale: alt.Scale | None = None,
    of_seeds: Sequence[Mapping[str, Any]] = (),
) -> tuple[list[alt.Chart], int]:
    """Return layers of dots with intervals, and their height, for rows with `setting`, `split` and
    the column `value`. `of_seeds` are rows of single seeds, drawn beside their means."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    settings = list(legend.styles)
    axis = alt.Axis(grid=True, tickBand="extent", labelLimit=110)
    place = (
        alt.Y(field="split", type="nominal", sort=splits, title=None, axis=axis),
        alt.YOffset("setting:N", sort=settings, scale=alt.Scale(domain=settings)),
        legend.colour(),
    )
    base = alt.Chart().encode(*place, alt.X(**quantitative(value, title, scale=scale)))
    ends = [
        (end, number_format)
        for end in (f"{value} low", f"{value} high")
        if any(end in row for row in rows)
    ]
    points = base.mark_point(filled=False, size=42, opacity=1).encode(
        *legend.symbols(), tooltip=tooltips("setting", "split", (value, number_format), *ends)
    )
    height = len(splits) * (_DOT * len(settings) + _SPACE)
    layers = interval_rules(base, "x", value, rows)
    if of_seeds:
        # Rings so small that they are dots: what is filled would fill the legend's symbols too.
        dots = alt.Chart(inline_data(of_seeds)).mark_point(
            filled=False, shape="circle", size=4, opacity=0.75, strokeWidth=2.5, aria=False
        )
        layers.append(dots.encode(*place, alt.X(**quantitative(_SEED, title))))
    return [*layers, points], height


SHIFTS = Chart(
    name="shifts",
    title="Difference on every split",
    about=(
        "Each method minus the reference, in points of accuracy, paired over seeds; right of "
        "the line is better. Bars are 95 % intervals of the paired difference, drawn from three "
        "seeds on; up to ten seeds each has a dot. The intervals are not adjusted for the number "
        "of shifts: the verdict tests their mean."
    ),
    draw=draw_shifts,
)


_TITLES = {"kl": "KL to zero-shot (nats)", "entropy": "Entropy (nats)"}


def draw_context(data: ChartData) -> Picture | None:
    """Draw KL to zero-shot and entropy of the contexts by split; return None if unmeasured."""
    probed = sorted(
        {
            match[1]
            for name in data.comparison.metric_names
            if (match := re.fullmatch(r"context/(id/test|ood/.+)/kl", name))
        }
    )
    every = (_probe(row, split) for split in probed for row in data.shown)
    rows = [row for row in every if len(row) > 2]
    if not rows:
        return None
    labels = {row["setting"] for row in rows}
    shown = (row for row in data.shown if row.arm.label in labels)
    legend = palette.legend_of_rows(shown, data.algorithms)
    charts = []
    for kind, title in _TITLES.items():
        if any(kind in row for row in rows):
            scale = alt.Scale(zero=True, nice=False, padding=8) if kind == "kl" else None
            dots, height = _dots(rows, legend, kind, title, ".3f", scale=scale)
            charts.append(alt.LayerChart(layer=dots, height=height))
    description = f"The context distribution of {len(labels)} models on {len(probed)} splits"
    return panels(charts, description, margin=130, least=420, rows=rows)


def _probe(row: Row, split: str) -> dict[str, Any]:
    """Return a row of the chart: setting, split, and where measured the KL divergence from
    zero-shot and the entropy of the context distribution, with 95 % bounds."""
    probe: dict[str, Any] = {"setting": row.arm.label, "split": split_name(split)}
    for kind in _TITLES:
        summary = row.metric(f"context/{split}/{kind}")
        if summary.mean is not None:
            probe[kind] = _short(summary.mean)
        if summary.ci95 is not None:
            probe[f"{kind} low"] = _short(summary.ci95.low)
            probe[f"{kind} high"] = _short(summary.ci95.high)
    return probe


def _short(value: float) -> float:
    return float(f"{value:.6g}")


CONTEXT = Chart(
    name="context",
    title="Did the sense of context survive?",
    about=(
        "What each model believes of an image's context (a sketch, an emoji), compared with the "
        "zero-shot model: KL 0 is untouched, and the larger it is, the more was forgotten there. "
        "Entropy is low where a model is sure of one context and high where several seem likely. "
        "It has no good side: compare it with zero-shot's, since moved either way the belief is "
        "another. Means with 95 % intervals over seeds."
    ),
    draw=draw_context,
    folded=True,
)
