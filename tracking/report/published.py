"""Numbers that others have published, beside ours where backbone, family and splits match."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tracking.comparison.metrics import ID, OOD, TOP1
from tracking.comparison.spec import TEST_DOMAIN

if TYPE_CHECKING:
    from tracking.comparison.compare import Comparison


FILE = Path(__file__).with_name("published.yaml")
MEAN = "mean"
SIGN = "§"
"""Marks what was not measured here."""


class Subject(NamedTuple):
    """Backbone and family of a run, as its config names them."""

    model: str
    pretrained: str | None
    family: str


@dataclass(frozen=True)
class Backbone:
    """One set of weights, under all its names."""

    title: str
    names: tuple[str, ...]
    pretrained: tuple[str | None, ...]


@dataclass(frozen=True)
class Published:
    """The numbers of one source for one method on one family; fractions."""

    method: str
    backbone: Backbone
    family: str
    source: str
    recipe: str
    note: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    """By `id`, a shift of the family, or `mean`."""
    mean_over: frozenset[str] = frozenset()
    """The shifts that `mean` is over."""


@dataclass(frozen=True)
class Quoted:
    """A published row under the names of a comparison's own metrics; in no choice, test or rank."""

    published: Published
    values: Mapping[str, float]
    footnote: int
    """Which source and recipe, counted from 1 in the order of the rows."""

    @property
    def label(self) -> str:
        """`CAR-FT §1`."""
        return f"{self.published.method} {SIGN}{self.footnote}"


def quoted(subjects: Collection[Subject], metrics: Collection[str]) -> tuple[Quoted, ...]:
    """Select what is published for one of the subjects, with a number for one of the `metrics`.

    The mean over shifts is given where it is over exactly the shifts measured here: of the quoted
    numbers where each is there, else as printed.
    """
    rows: list[Quoted] = []
    notes: dict[tuple[str, str], int] = {}
    for row in published():
        if not any(_matches(row, subject) for subject in subjects):
            continue
        values = _named(row, metrics)
        if values:
            footnote = notes.setdefault((row.source, row.recipe), len(notes) + 1)
            rows.append(Quoted(row, values, footnote))
    return tuple(rows)


def quoted_beside(subjects: Collection[Subject], comparison: Comparison) -> tuple[Quoted, ...]:
    """Select what is quoted beside the columns of a comparison.

    Where its tasks each hold out a domain, its OOD mean is the one over domains that is published
    of DomainBed's sets. Beside means over other tasks nothing can stand, and nothing beside another
    accuracy than top-1, which is what is printed.
    """
    if comparison.endpoint.by != TOP1:
        return ()
    table = comparison.task_table
    if table is None:
        return quoted(subjects, comparison.metric_names)
    if table.field != TEST_DOMAIN:
        return ()
    return quoted(subjects, {OOD, *(f"ood/{domain}/top1" for domain in table.endpoints)})


def footnotes(rows: Sequence[Quoted]) -> list[str]:
    """Explain the signs, and name each source once with its recipe."""
    if not rows:
        return []
    sources = {row.footnote: f"{row.published.source}; {row.published.recipe}." for row in rows}
    notes = {f"{row.label}: {row.published.note}." for row in rows if row.published.note}
    return [
        f"{SIGN} quoted, not measured here: in no choice, test, ranking or verdict.",
        *(f"{SIGN}{number} {source}" for number, source in sources.items()),
        *sorted(notes),
    ]


def none_published(subjects: Collection[Subject]) -> str:
    """Say that nothing is published for what was measured here."""
    measured = " or ".join(sorted({_subject_name(subject) for subject in subjects})) or "these runs"
    if any(_matches(row, subject) for row in published() for subject in subjects):
        return (
            f"Nothing is quoted for {measured}: what is published there is of other splits, or a "
            "mean over others, than what was measured here."
        )
    titles = {f"{row.backbone.title} on {row.family}": None for row in published()}
    return f"Nothing is quoted for {measured}. There are published numbers for {', '.join(titles)}."


@functools.cache
def published(file: Path = FILE) -> tuple[Published, ...]:
    """Read every row of the data file, in its order."""
    import yaml

    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    backbones = {
        name: Backbone(item["title"], tuple(item["names"]), tuple(item["pretrained"]))
        for name, item in data["backbones"].items()
    }
    return tuple(
        row
        for table in data["tables"]
        for method, numbers in table["rows"].items()
        for row in _rows(table, method, numbers, backbones[table["backbone"]], data["families"])
    )


def _rows(
    table: Mapping[str, Any],
    method: str,
    numbers: Sequence[float | None],
    backbone: Backbone,
    families: Mapping[str, Sequence[str]],
) -> Iterator[Published]:
    """Yield one row for each family in the columns."""
    by_family: dict[str, dict[str, float]] = {}
    for column, number in zip(table["columns"], numbers, strict=True):
        family, _, name = column.rpartition("/")
        if number is not None:
            by_family.setdefault(family or table["family"], {})[name] = number / 100
    for family, values in by_family.items():
        shifts = [name for name in table["columns"] if name in families[family]]
        yield Published(
            method,
            backbone,
            family,
            source=table["source"],
            recipe=table["recipe"],
            note=table.get("notes", {}).get(method, ""),
            values=values,
            mean_over=frozenset(table.get("mean_over") or shifts or families[family]),
        )


def _matches(row: Published, subject: Subject) -> bool:
    return (
        _plain(subject.family) == _plain(row.family)
        and subject.model in row.backbone.names
        and subject.pretrained in row.backbone.pretrained
    )


def _named(row: Published, metrics: Collection[str]) -> dict[str, float]:
    """Map the values to the comparison's names: `v2` may be its `ood/imagenet-v2/top1`."""
    family = _plain(row.family)
    shifts = {
        metric: _plain(metric.split("/")[1]).removeprefix(family)
        for metric in metrics
        if metric.startswith("ood/") and metric.endswith("/top1") and metric != OOD
    }
    by_plain = {_plain(name): value for name, value in row.values.items()}
    values = {metric: by_plain[name] for metric, name in shifts.items() if name in by_plain}
    if "id" in row.values and ID in metrics:
        values = {ID: row.values["id"], **values}
    if OOD in metrics and shifts:
        if len(values.keys() & shifts) == len(shifts):
            values[OOD] = sum(values[metric] for metric in shifts) / len(shifts)
        elif MEAN in row.values and {_plain(n) for n in row.mean_over} == set(shifts.values()):
            values[OOD] = row.values[MEAN]
    return values


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _subject_name(subject: Subject) -> str:
    tag = f" ({subject.pretrained})" if subject.pretrained else ""
    return f"{subject.model}{tag} on {subject.family}"
