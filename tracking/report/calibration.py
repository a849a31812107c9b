"""Measured zero-shot accuracies beside those of LAION's table, which checks the evaluation."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from carft_sweep.tracking.comparison.metrics import SPLITS, TITLES, TOP1, kind_of
from carft_sweep.tracking.comparison.runs import RunRecord, Scalar
from carft_sweep.tracking.report.published import (
    Backbone,
    DataSection,
    Subject,
    Text,
    plain,
    published_file,
)

if TYPE_CHECKING:
    from carft_sweep.tracking.comparison.compare import Comparison

FILE = Path(__file__).with_name("calibration.yaml")
TEMPLATES = "prompts.classes"
RESTRICT = "data.restrict"


class ReferenceSplit(DataSection):
    """A test set that the table and a family read alike: a column."""

    family: Text
    metric: Text
    dataset: Text
    """What the table calls it."""
    field: Text
    """Which of the table's accuracies: the one by which the family is judged."""
    images: int = Field(gt=0)
    """Of the whole set."""
    templates: Text
    """The template set whose prompts are the table's."""
    restricted: bool = False
    """Whether it lacks classes, and is scored among those that it has."""
    tolerance: float | None = Field(None, gt=0)
    """Points; None: the table's."""
    note: str = ""
    """What else differs there."""


class CalibrationTable(DataSection):
    """The data file: where the table is from, its columns, and a row for each backbone."""

    name: Text
    source: Text
    address: Text
    file: Text
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    date: datetime.date
    tolerance: float = Field(gt=0)
    """Points by which a measured accuracy may differ without a warning."""
    columns: tuple[ReferenceSplit, ...]
    rows: Mapping[str, tuple[float, ...]]
    """Percent, by the backbone's name in `published.yaml`."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for name, numbers in self.rows.items():
            if len(numbers) != len(self.columns):
                raise ValueError(f"{name} has {len(numbers)} numbers for {len(self.columns)}")
        unknown = {*self.rows} - {*published_file().backbones}
        if unknown:
            raise ValueError(f"no such backbone: {sorted(unknown)}")
        return self

    @property
    def title(self) -> str:
        """`LAION's table (CLIP_benchmark, 17 June 2025)`."""
        return f"{self.name} ({self.source}, {self.date.day} {self.date:%B %Y})"

    def row_of(self, subject: Subject) -> Sequence[float] | None:
        """Return the row of the subject's backbone, None where the table has none."""
        backbones: Mapping[str, Backbone] = published_file().backbones
        named = (row for name, row in self.rows.items() if backbones[name].is_of(subject))
        return next(named, None)


@functools.cache
def calibration_table(file: Path = FILE) -> CalibrationTable:
    """Read the data file. Raises pydantic's ValidationError for one that is not as it should be."""
    import yaml

    return CalibrationTable.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Deviation:
    """One zero-shot accuracy against the table's; fractions."""

    subject: Subject
    split: ReferenceSplit
    expected: float
    measured: float | None
    """None where nothing has been measured yet."""
    templates: str

    @property
    def points(self) -> float | None:
        """How many points the measured accuracy is above the table's."""
        return None if self.measured is None else 100 * (self.measured - self.expected)

    @property
    def has_same_templates(self) -> bool:
        """Whether the class prompts are the table's; with others some difference is no mistake."""
        return self.templates == self.split.templates

    @property
    def tolerance(self) -> float:
        """Points by which it may differ without a warning."""
        return self.split.tolerance or calibration_table().tolerance

    @property
    def is_beyond(self) -> bool:
        """Whether it differs by more than the tolerance, with the same prompts."""
        points = self.points
        # Of the table's two decimals: what is exactly at the tolerance is within.
        is_large = points is not None and round(abs(points), 2) > self.tolerance
        return is_large and self.has_same_templates

    @property
    def where(self) -> str:
        """`ID test`, `v2`, `ID test mean-per-class accuracy`."""
        split, kind = self.split.metric.rpartition("/")[0], kind_of(self.split.metric)
        name = SPLITS.get(split, split.removeprefix("ood/"))
        return name if kind == TOP1 else f"{name} {TITLES.get(kind, kind)}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        table, points = calibration_table(), self.points
        return {
            "model": self.subject.model,
            "pretrained": self.subject.pretrained,
            "family": self.subject.family,
            "metric": self.split.metric,
            "measured": self.measured,
            "expected": self.expected,
            "points": None if points is None else round(points, 2),
            "tolerance": self.tolerance,
            "beyond": self.is_beyond,
            "templates": self.templates,
            "expected_templates": self.split.templates,
            "note": self.split.note,
            "source": f"{table.address}, {table.file} at {table.commit}",
        }


def deviations(
    subject: Subject,
    *,
    templates: str,
    images: Mapping[str, int],
    metrics: Mapping[str, float] | None,
    is_restricted: bool = True,
) -> tuple[Deviation, ...]:
    """Compare a zero-shot model with the table, on each test set that is the table's whole one.

    Args:
        subject: Its backbone and family.
        templates: The set that its classifier is made of.
        images: By split how many images are read.
        metrics: What was measured; None: nothing yet, which gives the accuracies to expect.
        is_restricted: Whether sets that lack classes are scored among those that they have.

    Returns:
        In the order of the table; nothing for a backbone or a family that it has not, nor for a
        split that was not measured.
    """
    table = calibration_table()
    row = table.row_of(subject)
    if row is None:
        return ()
    return tuple(
        Deviation(
            subject,
            split,
            expected=number / 100,
            measured=None if metrics is None else metrics[split.metric],
            templates=templates,
        )
        for split, number in zip(table.columns, row, strict=True)
        if plain(split.family) == plain(subject.family)
        and images.get(split.metric.rpartition("/")[0]) == split.images
        and (metrics is None or split.metric in metrics)
        and (is_restricted or not split.restricted)
    )


def calibrate(
    runs: Iterable[RunRecord], fields: Mapping[str, Mapping[str, Scalar]]
) -> tuple[Deviation, ...]:
    """Compare the finished zero-shot runs with the table, each accuracy once.

    `fields` are those of the runs by digest; a run without is passed over.
    """
    every: dict[Deviation, None] = {}
    for run in runs:
        own, images = fields.get(run.digest), run.facts.get("images")
        if run.state != "done" or not run.is_zero_shot or own is None:
            continue
        own_deviations = deviations(
            Subject.of(own),
            templates=str(own.get(TEMPLATES)),
            images=images if isinstance(images, Mapping) else {},
            metrics=run.metrics,
            is_restricted=own.get(RESTRICT) != "never",
        )
        every |= dict.fromkeys(own_deviations)
    return tuple(every)


def sentences(every: Sequence[Deviation]) -> list[str]:
    """Say by how many points each zero-shot model differs, or what to expect of one."""
    return [_sentence(group) for group in _grouped(every)]


def warnings(every: Sequence[Deviation]) -> list[str]:
    """Warn of each zero-shot model that differs by more than the tolerance."""
    texts = []
    for group in _grouped([it for it in every if it.is_beyond]):
        parts = [
            f"{_points(it)} points on {it.where} ({100 * (it.measured or 0):.2f}, there "
            f"{100 * it.expected:.2f}; up to {it.tolerance:g} is usual){_note(it)}"
            for it in group
        ]
        texts.append(
            f"zero-shot {group[0].subject} differs from {calibration_table().name}: "
            f"{', '.join(parts)}; look at images, transform and weights before you trust the rows"
        )
    return texts


def with_warnings(comparison: Comparison, every: Sequence[Deviation]) -> Comparison:
    """Return the comparison with these warnings, each once, behind its own."""
    return replace(
        comparison, warnings=tuple(dict.fromkeys((*comparison.warnings, *warnings(every))))
    )


def _grouped(every: Sequence[Deviation]) -> Iterator[list[Deviation]]:
    """Yield those of one model, family and template set, measured ones apart from the others."""
    groups: dict[tuple[object, ...], list[Deviation]] = {}
    for it in every:
        groups.setdefault((it.subject, it.templates, it.measured is None), []).append(it)
    yield from groups.values()


def _sentence(group: Sequence[Deviation]) -> str:
    first, title = group[0], calibration_table().title
    if first.measured is None:
        numbers = ", ".join(f"{it.where} {100 * it.expected:.2f}{_note(it)}" for it in group)
        text = f"Expect of zero-shot {first.subject}, by {title}: {numbers}."
    else:
        numbers = ", ".join(f"{_points(it)} on {it.where}{_note(it)}" for it in group)
        text = f"Zero-shot {first.subject} differs from {title} by, in points: {numbers}."
    if first.has_same_templates:
        return text
    return (
        f"{text} Its templates are {first.templates}, there {first.split.templates}: some "
        "difference is to be expected."
    )


def _points(it: Deviation) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(it.points or 0.0, 2) + 0.0:+.2f}"


def _note(it: Deviation) -> str:
    return f" ({it.split.note})" if it.split.note else ""
