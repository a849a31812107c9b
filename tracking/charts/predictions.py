"""Accuracy by class, and calibration, from the predictions that runs keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from carft_sweep.tracking.charts import palette
from carft_sweep.tracking.charts.base import (
    Chart,
    Marks,
    Picture,
    inline_data,
    interval_ends,
    interval_rules,
    layered,
    panels,
    percent,
    quantitative,
    rule_at,
    single,
    split_name,
    tooltips,
)
from carft_sweep.tracking.charts.data import ChartData, Seed
from carft_sweep.tracking.charts.palette import NEUTRAL, Legend
from carft_sweep.tracking.comparison.compare import Row
from carft_sweep.tracking.comparison.predictions import BINS, Tally
from carft_sweep.tracking.comparison.statistics import mean, t_interval

ID_SPLIT = "id/test"
MEAN = "ood/mean"
MOST = 5
"""Classes that gain, and as many that lose."""
FEWEST_IMAGES = 10
"""In a run, below which a bin of confidence is not drawn: its accuracy is chance."""
_DOT, _SPACE = 5, 8
"""Pixels of height that a dot takes, and between classes: equal differences hide no dot."""
_VALUE = "difference"
Tallies = Mapping[str, Tally]


@dataclass(frozen=True)
class ClassDifferences:
    """Row minus reference by class, on one split or on the mean of the shifts."""

    row: Row
    split: str
    values: NDArray[np.float64]
    """[seeds, C] as fractions; NaN for a class that is not there."""
    images: NDArray[np.int64]
    """[C] how many images of a class there are, in one run."""


def draw_classes(data: ChartData) -> Picture | None:
    """Draw the extreme classes; None unless the reference and another row keep predictions."""
    reference, parts = data.reference, all_class_differences(data)
    if reference is None or not parts:
        return None
    lead = _lead(data, parts)
    splits = list(dict.fromkeys(part.split for part in parts if part.row.arm.label == lead))
    rows = [row for split in splits for row in _class_rows(data, parts, lead, split)]
    legend = palette.legend_of_rows(
        {part.row.arm.label: part.row for part in parts}, data.algorithms
    )
    names, settings = [split_name(split) for split in splits], list(legend.styles)
    chooser = alt.binding_select(options=names, name="Split: ")
    choice = alt.param(name="split", value=names[0], bind=chooser)
    base = (
        Marks()
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
            legend.colour(),
        )
    )
    hints = tooltips("setting", "class", (_VALUE, "+.1f"), ("images", "d"))
    most = max(len({row["class"] for row in rows if row["split"] == name}) for name in names)
    height = most * (_DOT * len(settings) + _SPACE)
    layers = [
        rule_at(0, "x"),
        *interval_rules(base, "x", _VALUE, rows),
        base.mark_point(filled=False, size=45, opacity=0.9).encode(
            *legend.symbols(), tooltip=hints
        ),
    ]
    description = f"Classes that gain and lose most against {reference.arm.label}"
    return single(layers, height, description, rows).add_params(choice)


def all_class_differences(data: ChartData) -> list[ClassDifferences]:
    """Compare every row on show with the reference, where both keep their predictions."""
    if data.reference is None:
        return []
    reference = data.tallies(data.reference)
    return [
        part
        for row in data.shown
        if row is not data.reference
        for part in class_differences(row, data.tallies(row), reference)
    ]


def class_differences(
    row: Row, tallies: Mapping[Seed, Tallies], reference: Mapping[Seed, Tallies]
) -> Iterator[ClassDifferences]:
    """Compare on the mean over shifts, the test split and every shift, over the common seeds.

    A row that no seed changes stands against each seed of the other; a split in which the two saw
    other images is left out.
    """
    pairs = [(tallies[seed], reference[seed]) for seed in tallies if seed in reference]
    if not row.arm.has_seeds and tallies:
        pairs = [(next(iter(tallies.values())), other) for other in reference.values()]
    if not pairs:
        return
    parts = {}
    for split in sorted(split for split in pairs[0][0] if split == ID_SPLIT or _is_shift(split)):
        values = [_difference(one.get(split), two.get(split)) for one, two in pairs]
        measured = [value for value in values if value is not None]
        if len(measured) == len(pairs):
            width = max(map(len, measured))
            stacked = np.stack([_padded(value, width, np.nan) for value in measured])
            parts[split] = ClassDifferences(row, split, stacked, pairs[0][0][split].images)
    outside = row.arm.done[0].outside_means | {ID_SPLIT}
    shifts = [part for split, part in parts.items() if split not in outside]
    if shifts:
        yield _mean_over_shifts(row, shifts)
    yield from parts.values()


def _is_shift(split: str) -> bool:
    return split.startswith("ood/")


def _mean_over_shifts(row: Row, shifts: Sequence[ClassDifferences]) -> ClassDifferences:
    """Average so that each shift that has a class counts the same."""
    width = max(part.values.shape[1] for part in shifts)
    layers = np.stack([_padded(part.values, width, np.nan) for part in shifts])
    present = ~np.isnan(layers)
    count = present.sum(axis=0)
    total = np.where(present, layers, 0.0).sum(axis=0)
    values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    images = sum(_padded(part.images, width, 0) for part in shifts)
    return ClassDifferences(row, MEAN, values, np.asarray(images))


def _difference(one: Tally | None, two: Tally | None) -> NDArray[np.float64] | None:
    if one is None or two is None:
        return None
    width = max(len(one.images), len(two.images))
    images = _padded(one.images, width, 0)
    if not np.array_equal(images, _padded(two.images, width, 0)):
        return None
    hits = _padded(one.hits, width, 0) - _padded(two.hits, width, 0)
    return np.where(images > 0, hits / np.maximum(images, 1), np.nan)


def _padded(values: NDArray[Any], width: int, fill: float) -> NDArray[Any]:
    """Widen the last axis to all classes."""
    padding = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
    return np.pad(values, padding, constant_values=fill)


def _lead(data: ChartData, parts: Sequence[ClassDifferences]) -> str:
    """Choose the row whose extremes are shown: the selected one, else one that is trained."""
    arms = {part.row.arm.label: part.row.arm for part in parts}
    if data.selected is not None:
        selected = data.selected.arm
        for label, arm in arms.items():  # The same setting may be there on fresh seeds.
            if arm.merge == selected.merge and arm.is_setting_of(selected):
                return label
    trained = [label for label, arm in arms.items() if arm.trains and arm.merge is None]
    return trained[-1] if trained else next(iter(arms))


def _class_rows(
    data: ChartData, parts: Sequence[ClassDifferences], lead: str, split: str
) -> list[dict[str, Any]]:
    of_split = [part for part in parts if part.split == split]
    leader = next(part for part in of_split if part.row.arm.label == lead)
    rows = []
    for rank, number in enumerate(_extremes(leader)):
        for part in of_split:
            if number < part.values.shape[1] and np.isfinite(part.values[:, number]).all():
                values = [float(value) for value in part.values[:, number]]
                ends = interval_ends(t_interval(values), _VALUE) if part is leader else {}
                rows.append(
                    {
                        "split": split_name(split),
                        "class": data.class_name(number),
                        "rank": rank,
                        "setting": part.row.arm.label,
                        _VALUE: percent(mean(values)),
                        "images": int(part.images[number]),
                        **ends,
                    }
                )
    return rows


def _extremes(part: ClassDifferences) -> list[int]:
    """Return the classes with the largest differences, gains first; of equal ones the first."""
    means = part.values.mean(axis=0)
    present = np.flatnonzero(np.isfinite(means))
    order = present[np.argsort(-means[present], kind="stable")]
    if len(order) > 2 * MOST:
        order = np.concatenate([order[:MOST], order[-MOST:]])
    return [int(number) for number in order]


CLASSES = Chart(
    name="classes",
    title="Difference by class",
    about=(
        "The five classes that the selected method gains most in against the reference and the "
        "five it loses most in, mean over shifts or on the split chosen below the chart. The 95 % "
        "intervals over seeds are not adjusted for the number of classes, of which these are the "
        "extremes with few images each: part of what they show is chance."
    ),
    draw=draw_classes,
    folded=True,
)


_HEIGHT, _LOW = 260, 90
_FIELD = "setting and ECE"


def draw_calibration(data: ChartData) -> Picture | None:
    """Draw accuracy by confidence; None where no row on show keeps its predictions."""
    diagrams, shares, titles = [], [], []
    for split in (ID_SPLIT, MEAN):
        rows, full, drawn = [], [], {}
        for row in data.shown:
            tallies = [*data.tallies(row).values()]
            if row.n and len(tallies) == row.n:  # Of fewer runs it would not be the table's mean.
                ece, bins = reliability(row, tallies, split)
                name = f"{row.arm.label}, ECE {100 * ece:.1f} %"
                fewest = FEWEST_IMAGES * row.n
                rows += [{_FIELD: name, **each} for each in bins]
                full += [{_FIELD: name, **each} for each in bins if each["images"] >= fewest]
                if bins:
                    drawn[name] = row
        if full:
            title = split_name(split)
            legend = palette.legend_of_rows(drawn, data.algorithms, _FIELD)
            titles.append(title)
            diagrams.append(_diagram(title, full, legend))
            shares.append(_shares(title, rows, legend))
    if not diagrams:
        return None
    description = f"Accuracy by confidence on {' and '.join(titles)}"
    channels = ["color", "fill", "shape", "strokeDash"]
    return panels([*diagrams, *shares], description, independent=channels)


def reliability(
    row: Row, runs: Sequence[Tallies], split: str
) -> tuple[float, list[dict[str, float]]]:
    """Compute the mean ECE and accuracy by confidence of all runs together, in percent.

    On `ood/mean` each shift counts the same. Empty bins are left out; so is a split that not every
    run has.
    """
    outside = row.arm.done[0].outside_means
    shifts = [name for name in runs[0] if _is_shift(name) and name not in outside]
    names = shifts if split == MEAN else [split]
    if not names or not all(name in run for run in runs for name in names):
        return 0.0, []
    parts = [run[name] for run in runs for name in names]
    share, hits, confidence = (
        np.mean([counts / part.binned.sum() for part, counts in each], axis=0)
        for each in (
            [(part, part.binned) for part in parts],
            [(part, part.binned_hits) for part in parts],
            [(part, part.confidence) for part in parts],
        )
    )
    images = np.sum([part.binned for part in parts], axis=0)
    bins: list[dict[str, float]] = [
        {
            "confidence": percent(float(confidence[i] / share[i])),
            "accuracy": percent(float(hits[i] / share[i])),
            "images": int(images[i]),
            "share": percent(float(share[i])),
            "from": percent(i / BINS),
            "to": percent((i + 1) / BINS),
        }
        for i in range(BINS)
        if images[i]
    ]
    return mean([part.ece for part in parts]), bins


def _diagram(title: str, rows: list[dict[str, Any]], legend: Legend) -> alt.LayerChart:
    percents = alt.Scale(domain=[0, 100])
    x = alt.X("confidence:Q", title="confidence (%)", scale=percents)
    y = alt.Y("accuracy:Q", title="accuracy (%)", scale=percents)
    corners = [{"confidence": end, "accuracy": end} for end in (0, 100)]
    perfect = Marks(inline_data(corners)).mark_line(
        color=NEUTRAL, strokeDash=[2, 2], strokeWidth=1.5, aria=False
    )
    base = Marks(inline_data(rows), title=title).encode(x, y, legend.colour())
    size = alt.Size("share:Q", scale=alt.Scale(domain=[0, 20], range=[6, 80], clamp=True))
    size["legend"] = None
    hints = tooltips(_FIELD, ("confidence", ".1f"), ("accuracy", ".1f"), ("images", "d"))
    layers = [
        perfect.encode(x, y),
        base.mark_line(strokeWidth=1.5, aria=False).encode(legend.dash()),
        base.mark_point(filled=False, opacity=1).encode(*legend.symbols(), size, tooltip=hints),
    ]
    return layered(layers, _HEIGHT)


def _shares(title: str, rows: list[dict[str, Any]], legend: Legend) -> alt.LayerChart:
    """Draw steps over the bins, since bars of several rows would hide each other."""
    middle = Marks(inline_data(rows)).transform_calculate(middle="(datum.from + datum.to) / 2")
    hints = tooltips(_FIELD, ("from", ".1f"), ("to", ".1f"), ("share", ".1f"), ("images", "d"))
    scale = alt.Scale(domain=[0, 100])
    lines = middle.mark_line(interpolate="step", strokeWidth=1.5, aria=False).encode(
        alt.X("middle:Q", title=f"confidence (%), {title}", scale=scale),
        alt.Y("share:Q", title="images (%)", axis=alt.Axis(tickCount=3)),
        legend.colour(legend=False),
        legend.dash(),
        tooltip=hints,
    )
    return layered([lines], _LOW)


CALIBRATION = Chart(
    name="calibration",
    title="Calibration",
    about=(
        "How often a model is right at each confidence, in fifteen bins: on the dotted line it "
        "knows how sure it may be, below it is too sure. All seeds together; on OOD each shift "
        "counts the same; the larger a symbol, the more images. Bins with fewer than ten images a "
        "run are not drawn, and count in ECE, which is the mean over seeds, as in the table. "
        "Below: where the images lie."
    ),
    draw=draw_calibration,
    folded=True,
)
