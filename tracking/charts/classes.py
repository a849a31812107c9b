"""The classes that gain and lose most against the reference, on each split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from tracking.charts import marks, palette
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import single
from tracking.charts.measures import ends, percent, split_name
from tracking.evidence import Evidence
from tracking.evidence.classes import ClassDifferences
from tracking.statistics import t_interval

MOST = 10
"""Classes that gain, and as many that lose."""
_DOT, _SPACE = 5, 8
"""Pixels of height that a dot takes, and between classes: equal differences hide no dot."""
_VALUE = "difference"


def draw(evidence: Evidence) -> Picture | None:
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
            alt.X(**marks.number(_VALUE, f"Top-1 minus {reference.arm.label} (points)")),
            signs.colour(),
        )
    )
    hints = marks.hints("setting", "class", (_VALUE, "+.1f"), ("images", "d"))
    most = max(len({row["class"] for row in rows if row["split"] == name}) for name in names)
    height = most * (_DOT * len(settings) + _SPACE)
    layers = [
        marks.rule_at(0, "x"),
        *marks.interval(base, "x", _VALUE, rows),
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


CHART = Chart(
    name="classes",
    title="Difference by class",
    about=(
        "The ten classes that the selected method gains most in against the reference and the ten "
        "it loses most in, mean over shifts or on the split chosen below the chart, with its 95 % "
        "intervals over seeds. These are the extremes of many classes with few images each: part "
        "of them is chance."
    ),
    draw=draw,
)
