"""Measured zero-shot accuracies beside those of LAION's table, which checks the evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from carft_sweep.tracking.comparison.metrics import named
from carft_sweep.tracking.comparison.runs import RunRecord, Scalar

if TYPE_CHECKING:
    from carft_sweep.tracking.comparison.compare import Comparison

FILE = Path(__file__).with_name("calibration.yaml")


class Subject(NamedTuple):
    """Backbone and family of a run, as its config names them."""

    model: str
    pretrained: str | None
    family: str

    @classmethod
    def of(cls, fields: Mapping[str, Scalar]) -> Subject:
        """Return that of a run with these fields, by their dotted names."""
        pretrained = fields.get("model.pretrained")
        return cls(
            str(fields.get("model.name")),
            None if pretrained is None else str(pretrained),
            str(fields.get("data.family")),
        )

    @property
    def backbone(self) -> str:
        """`ViT-B-16 openai`: the weights of OpenAI have quick GELU under either name."""
        model = self.model.removesuffix("-quickgelu") if self.pretrained == "openai" else self.model
        return f"{model} {self.pretrained}" if self.pretrained else model

    def __str__(self) -> str:
        tag = f" ({self.pretrained})" if self.pretrained else ""
        return f"{self.model}{tag} on {self.family}"


class ReferenceSplit(NamedTuple):
    """A test set that the table and a family read alike: a column."""

    family: str
    metric: str
    images: int
    """Of the whole set."""
    templates: str
    """The template set whose prompts are the table's."""
    restricted: bool = False
    """Whether it lacks classes, and is scored among those that it has."""
    tolerance: float = 0.5
    """Points by which a measured accuracy may differ without a warning."""
    note: str = ""
    """What else differs there."""


class CalibrationTable(NamedTuple):
    """The data file."""

    title: str
    source: str
    columns: tuple[ReferenceSplit, ...]
    rows: Mapping[str, Sequence[float]]
    """Percent, by `Subject.backbone`."""


@functools.cache
def calibration_table() -> CalibrationTable:
    """Read the data file."""
    import yaml

    data = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    columns = tuple(ReferenceSplit(**column) for column in data["columns"])
    return CalibrationTable(data["title"], data["source"], columns, data["rows"])


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
        """How many points the measured accuracy is above the table's, with its two decimals."""
        if self.measured is None:
            return None
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        return round(100 * (self.measured - self.expected), 2) + 0.0

    @property
    def is_beyond(self) -> bool:
        """Whether it differs by more than the tolerance, with the same prompts."""
        is_large = abs(self.points or 0.0) > self.split.tolerance
        return is_large and self.templates == self.split.templates

    @property
    def where(self) -> str:
        """`ID test`, `v2`, `ID test mean-per-class accuracy`."""
        return named(self.split.metric).removeprefix("ood/")

    @property
    def note(self) -> str:
        """What else differs there, in brackets, as it stands behind a number."""
        return f" ({self.split.note})" if self.split.note else ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            **self.subject._asdict(),
            "metric": self.split.metric,
            "measured": self.measured,
            "expected": self.expected,
            "points": self.points,
            "tolerance": self.split.tolerance,
            "beyond": self.is_beyond,
            "templates": self.templates,
            "expected_templates": self.split.templates,
            "note": self.split.note,
            "source": calibration_table().source,
        }


def deviations(
    fields: Mapping[str, Scalar], images: Mapping[str, int], metrics: Mapping[str, float] | None
) -> Iterator[Deviation]:
    """Compare a zero-shot model with the table, on each test set that is the table's whole one.

    Args:
        fields: Those of its config, by dotted names.
        images: By split how many images are read.
        metrics: What was measured; None: nothing yet, which gives the accuracies to expect.

    Yields:
        In the order of the table; nothing for a backbone or a family that it has not, nor for a
        split that was not measured.
    """
    table, subject = calibration_table(), Subject.of(fields)
    for split, number in zip(table.columns, table.rows.get(subject.backbone, ()), strict=False):
        if (
            split.family == subject.family
            and images.get(split.metric.rpartition("/")[0]) == split.images
            and (metrics is None or split.metric in metrics)
            and not (split.restricted and fields.get("data.restrict") == "never")
        ):
            measured = None if metrics is None else metrics[split.metric]
            templates = str(fields.get("prompts.classes"))
            yield Deviation(subject, split, number / 100, measured, templates)


def calibrate(
    runs: Iterable[RunRecord], fields: Mapping[str, Mapping[str, Scalar]]
) -> tuple[Deviation, ...]:
    """Compare the finished zero-shot runs with the table, each accuracy once.

    `fields` are those of the runs by digest; a run without is passed over.
    """
    every: dict[Deviation, None] = {}
    for run in runs:
        if run.state == "done" and run.is_zero_shot and run.digest in fields:
            images = run.facts.get("images")
            counts = images if isinstance(images, Mapping) else {}
            every |= dict.fromkeys(deviations(fields[run.digest], counts, run.metrics))
    return tuple(every)


def sentences(every: Sequence[Deviation]) -> list[str]:
    """Say by how many points each zero-shot model differs, or what to expect of one."""
    return [_sentence(group) for group in _grouped(every)]


def _sentence(group: Sequence[Deviation]) -> str:
    first, title = group[0], calibration_table().title
    if first.measured is None:
        numbers = ", ".join(f"{it.where} {100 * it.expected:.2f}{it.note}" for it in group)
        text = f"Expect of zero-shot {first.subject}, by {title}: {numbers}."
    else:
        numbers = ", ".join(f"{it.points:+.2f} on {it.where}{it.note}" for it in group)
        text = f"Zero-shot {first.subject} differs from {title} by, in points: {numbers}."
    if first.templates == first.split.templates:
        return text
    return (
        f"{text} Its templates are {first.templates}, there {first.split.templates}: some "
        "difference is to be expected."
    )


def warnings(every: Sequence[Deviation]) -> list[str]:
    """Warn of each zero-shot model that differs by more than the tolerance."""
    texts = []
    for group in _grouped([deviation for deviation in every if deviation.is_beyond]):
        parts = [
            f"{it.points:+.2f} points on {it.where} ({100 * (it.measured or 0):.2f}, there "
            f"{100 * it.expected:.2f}; up to {it.split.tolerance:g} is usual){it.note}"
            for it in group
        ]
        texts.append(
            f"zero-shot {group[0].subject} differs from LAION's table: {', '.join(parts)}; look at "
            "images, transform and weights before you trust the rows"
        )
    return texts


def with_warnings(comparison: Comparison, every: Sequence[Deviation]) -> Comparison:
    """Return the comparison with these warnings, each once, behind its own."""
    texts = dict.fromkeys((*comparison.warnings, *warnings(every)))
    return replace(comparison, warnings=tuple(texts))


def _grouped(every: Sequence[Deviation]) -> Iterator[list[Deviation]]:
    """Yield those of one model, family and template set, measured ones apart from the others."""
    groups: dict[tuple[object, ...], list[Deviation]] = {}
    for it in every:
        groups.setdefault((it.subject, it.templates, it.measured is None), []).append(it)
    yield from groups.values()
