"""Measured zero-shot accuracies beside those of LAION's table, which checks the evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from carft_sweep.tracking.comparison.metrics import named
from carft_sweep.tracking.comparison.runs import Scalar

if TYPE_CHECKING:
    from carft_sweep.tracking.comparison.compare import Comparison

FILE = Path(__file__).with_name("published_zero_shot.yaml")


class ReferenceSplit(NamedTuple):
    """A column of LAION's table whose test set a data family has too."""

    family: str
    metric: str
    images: int
    """Number of images of the whole set."""
    templates: str
    """The template set with the prompts of the table."""
    tolerance: float = 0.5
    """Points by which a measured accuracy may differ without a warning."""
    note: str = ""
    """Other differences from the table's evaluation."""


class PublishedTable(NamedTuple):
    """LAION's table of zero-shot accuracies."""

    title: str
    columns: tuple[ReferenceSplit, ...]
    rows: Mapping[str, Sequence[float]]
    """Accuracies in percent, in the order of `columns`, by backbone."""


@functools.cache
def published_table() -> PublishedTable:
    """Return LAION's table of zero-shot accuracies, read from the data file."""
    import yaml

    data = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    columns = tuple(ReferenceSplit(**column) for column in data["columns"])
    return PublishedTable(data["title"], columns, data["rows"])


class Deviation(NamedTuple):
    """One zero-shot accuracy against the table's, in percent."""

    model: str
    """Backbone and family in words."""
    templates: str
    split: ReferenceSplit
    expected: float
    measured: float | None
    """None where nothing has been measured yet."""

    @property
    def points(self) -> float:
        """Percentage points by which the measured accuracy exceeds the table's two decimals."""
        return 0.0 if self.measured is None else round(self.measured - self.expected, 2)

    @property
    def is_beyond(self) -> bool:
        """Whether accuracies with the table's own prompts differ by more than the tolerance."""
        return abs(self.points) > self.split.tolerance and self.templates == self.split.templates

    @property
    def place(self) -> str:
        """Name of the split, with other differences: `ID test`, `v2 (...)`."""
        note = f" ({self.split.note})" if self.split.note else ""
        return named(self.split.metric).removeprefix("ood/") + note


def deviations(
    fields: Mapping[str, Scalar], images: Mapping[str, int], metrics: Mapping[str, float] | None
) -> Iterator[Deviation]:
    """Yield the difference of a zero-shot model from the table, on each test set that is complete.

    Args:
        fields: Fields of the model's config, by dotted names.
        images: Number of images by split.
        metrics: The measured metrics; None: nothing yet, which gives the accuracies to expect.

    Yields:
        Deviations in the order of the table; none for a backbone or a family that the table lacks,
        nor for a split that was not measured.
    """
    model, weights = fields.get("model.name"), fields.get("model.pretrained")
    family, templates = fields.get("data.family"), str(fields.get("prompts.classes"))
    # OpenAI's weights have quick GELU under either name.
    name = str(model).removesuffix("-quickgelu") if weights == "openai" else model
    backbone, words = (f"{name} {weights}", f" ({weights})") if weights else (str(name), "")
    table = published_table()
    for split, expected in zip(table.columns, table.rows.get(backbone, ()), strict=False):
        if (
            split.family == family
            and images.get(split.metric.rpartition("/")[0]) == split.images
            and (metrics is None or split.metric in metrics)
        ):
            measured = None if metrics is None else 100 * metrics[split.metric]
            yield Deviation(f"{model}{words} on {family}", templates, split, expected, measured)


def sentences(every: Iterable[Deviation]) -> tuple[str, ...]:
    """Return for each zero-shot model by how many points it differs from the table, or before it is
    measured which accuracies to expect."""
    title, texts = published_table().title, []
    for group in _grouped(every):
        first = group[0]
        if first.measured is None:
            numbers = ", ".join(f"{row.place}: {row.expected:.2f}" for row in group)
            text = f"Expect of zero-shot {first.model}, by {title}: {numbers}."
        else:
            numbers = ", ".join(f"{row.points:+z.2f} on {row.place}" for row in group)
            text = f"Zero-shot {first.model} differs from {title} by, in points: {numbers}."
        if first.templates != first.split.templates:
            text += (
                f" Its templates are {first.templates}, there {first.split.templates}: some "
                "difference is to be expected."
            )
        texts.append(text)
    return tuple(texts)


def warnings(every: Iterable[Deviation]) -> tuple[str, ...]:
    """Return a warning for each zero-shot model that differs by more than the tolerance."""
    texts = []
    for group in _grouped(deviation for deviation in every if deviation.is_beyond):
        numbers = ", ".join(
            f"{row.points:+z.2f} points on {row.place} ({row.measured:.2f}, there "
            f"{row.expected:.2f}; up to {row.split.tolerance:g} is usual)"
            for row in group
        )
        texts.append(
            f"zero-shot {group[0].model} differs from LAION's table: {numbers}; look at "
            "images, transform and weights before you trust the rows"
        )
    return tuple(texts)


def check_zero_shot(
    comparison: Comparison, fields: Mapping[str, Mapping[str, Scalar]]
) -> tuple[Comparison, tuple[str, ...]]:
    """Compare finished zero-shot runs with the table, each accuracy once.

    Args:
        fields: Config fields of the runs by digest; runs without fields are skipped.

    Returns:
        The comparison with added warnings, and a sentence for each model.
    """
    every: dict[Deviation, None] = {}
    for run in comparison.runs():
        if run.state == "done" and run.is_zero_shot and run.digest in fields:
            images = run.facts.get("images")
            counts = images if isinstance(images, Mapping) else {}
            every |= dict.fromkeys(deviations(fields[run.digest], counts, run.metrics))
    texts = dict.fromkeys((*comparison.warnings, *warnings(every)))
    return replace(comparison, warnings=tuple(texts)), sentences(every)


def _grouped(every: Iterable[Deviation]) -> Iterable[Sequence[Deviation]]:
    """Return deviations by model, family and template set, measured ones apart from the others."""
    groups: dict[tuple[str, str, bool], list[Deviation]] = {}
    for row in every:
        groups.setdefault((row.model, row.templates, row.measured is None), []).append(row)
    return groups.values()
