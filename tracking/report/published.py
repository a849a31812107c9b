"""Numbers that others have published, beside ours where backbone, family and splits match."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from carft_sweep.tracking.comparison.metrics import ID, OOD, TOP1, capitalised
from carft_sweep.tracking.comparison.spec import TEST_DOMAIN

if TYPE_CHECKING:
    from carft_sweep.tracking.comparison.compare import Comparison
    from carft_sweep.tracking.comparison.runs import Scalar


FILE = Path(__file__).with_name("published.yaml")
MEAN = "mean"
SIGN = "§"
"""Marks what was not measured here."""
UNMERGED = "none"
"""How alpha was chosen where nothing is merged."""

Text = Annotated[str, StringConstraints(min_length=1)]


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

    def __str__(self) -> str:
        tag = f" ({self.pretrained})" if self.pretrained else ""
        return f"{self.model}{tag} on {self.family}"


class DataSection(BaseModel):
    """A part of the data file: no unknown key, no other type."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Backbone(DataSection):
    """One set of weights, under all its names."""

    title: Text
    names: tuple[Text, ...]
    pretrained: tuple[Text, ...]

    def is_of(self, subject: Subject) -> bool:
        """Whether a run with this model and these weights has it."""
        return subject.model in self.names and subject.pretrained in self.pretrained


class RowException(DataSection):
    """What one row of a table states otherwise than the table, or besides."""

    alpha_selection: Text | None = None
    run_by: Text | None = None
    note: str = ""


class PublishedTable(DataSection):
    """A table of one source. What it states holds for each row that has no exception from it."""

    source: Text
    """The paper with its table, or the file; enough to find it."""
    backbone: Text
    family: Text | None = None
    """None where every column names its own."""
    recipe: Text
    shifts: tuple[Text, ...]
    """Those that `mean` is over; empty where each column is a mean over its family's domains."""
    alpha_selection: Text
    """How the weight between the zero-shot and the tuned model was chosen; `none`: none is."""
    run_by: Text
    columns: tuple[Text, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    exceptions: Mapping[str, RowException] = Field(default_factory=dict)
    printed_average: Mapping[str, float] = Field(default_factory=dict)
    """Over the columns, where the source prints it: shown nowhere, it checks the numbers."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        own = {name for name in self.columns if "/" not in name and name not in ("id", MEAN)}
        if own - {*self.shifts}:
            raise ValueError(
                f"columns that are not among the shifts: {sorted(own - {*self.shifts})}"
            )
        if self.family is None and any("/" not in name for name in self.columns):
            raise ValueError("without a family every column is FAMILY/mean")
        for method, numbers in self.rows.items():
            if len(numbers) != len(self.columns):
                raise ValueError(f"{method} has {len(numbers)} numbers for {len(self.columns)}")
        unknown = {*self.exceptions, *self.printed_average} - {*self.rows}
        if unknown:
            raise ValueError(f"no such row: {sorted(unknown)}")
        return self


class PublishedFile(DataSection):
    """The data file: backbones, families with their shifts, and tables."""

    backbones: Mapping[str, Backbone]
    families: Mapping[str, tuple[str, ...]]
    tables: tuple[PublishedTable, ...]

    @model_validator(mode="after")
    def _knows_all_names(self) -> Self:
        for table in self.tables:
            families = {column.rpartition("/")[0] or table.family for column in table.columns}
            if table.backbone not in self.backbones or not families <= {*self.families}:
                raise ValueError(f"{table.source}: no such backbone or family")
            if not {*table.shifts} <= {*self.families.get(table.family or "", ())}:
                raise ValueError(f"{table.source}: shifts that {table.family} has not")
        return self


@dataclass(frozen=True)
class Published:
    """The numbers of one row of a table for one family; fractions."""

    method: str
    backbone: Backbone
    family: str
    table: PublishedTable
    shifts: tuple[str, ...]
    """Those that `mean` is over."""
    alpha_selection: str
    """How the weight between the zero-shot and the tuned model was chosen; `none`: none is."""
    run_by: str
    """Whose runs these are."""
    note: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    """By `id`, a shift of the family, or `mean`."""

    @property
    def source(self) -> str:
        """Where exactly the numbers were read."""
        return self.table.source

    @property
    def recipe(self) -> str:
        """How the source trained."""
        return self.table.recipe


@dataclass(frozen=True)
class Quoted:
    """A published row under the names of a comparison's own metrics; in no choice, test or rank."""

    published: Published
    values: Mapping[str, float]
    footnote: int
    """Which table, counted from 1 in the order of the rows."""
    mean: Literal["printed", "computed"] | None = None
    """Whether the source prints the OOD mean, or it is computed here from the row's numbers; None
    where the row has none over the shifts of the comparison."""

    @property
    def label(self) -> str:
        """`CAR-FT §1`."""
        return f"{self.published.method} {SIGN}{self.footnote}"


def quoted(subjects: Collection[Subject], metrics: Collection[str]) -> tuple[Quoted, ...]:
    """Select what is published for one of the subjects, with a number for one of the `metrics`.

    The mean over shifts is given where it is over exactly the shifts measured here: as printed, or
    computed from the quoted numbers where each is there.
    """
    rows: list[Quoted] = []
    notes: dict[int, int] = {}
    for row in published():
        if not any(_matches(row, subject) for subject in subjects):
            continue
        values, mean = _named(row, metrics)
        if values:
            # Tables are told apart as objects: a source may have two of one backbone.
            footnote = notes.setdefault(id(row.table), len(notes) + 1)
            rows.append(Quoted(row, values, footnote, mean))
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
        outside = {name for run in comparison.runs() for name in run.outside_means}
        averaged = comparison.metric_names - {f"{name}/{TOP1}" for name in outside}
        return quoted(subjects, averaged)
    if table.field != TEST_DOMAIN:
        return ()
    return quoted(subjects, {OOD, *(f"ood/{domain}/top1" for domain in table.endpoints)})


def footnotes(rows: Sequence[Quoted]) -> list[str]:
    """Explain the signs, and state of each table its source, shifts, runs, alpha and recipe once.

    What a row has otherwise than its table, or besides, stands under the row's own sign.
    """
    if not rows:
        return []
    tables = {row.footnote: row.published.table for row in rows}
    notes = {f"{row.label}: {text}." for row in rows if (text := _own_statement(row.published))}
    computed = dict.fromkeys(f"{SIGN}{row.footnote}" for row in rows if row.mean == "computed")
    of_means = (
        "Sources that print no mean over the shifts which were measured here: the OOD mean is "
        f"computed from the row's numbers ({', '.join(computed)})."
    )
    return [
        f"{SIGN} quoted, not measured here: in no choice, test, ranking or verdict.",
        *(f"{SIGN}{number} {_statement(table)}." for number, table in tables.items()),
        *sorted(notes),
        *([of_means] if computed else []),
    ]


def _statement(table: PublishedTable) -> str:
    """State what a table is of: its source, shifts, whose runs, how alpha was chosen, recipe."""
    count = len(table.shifts)
    noun = "shift" if count == 1 else "shifts"
    shifts = [f"{count} {noun}: {', '.join(table.shifts)}"] if count else []
    own = (f"Run by: {table.run_by}", capitalised(_alpha(table)), f"Recipe: {table.recipe}")
    return ". ".join((table.source, *shifts, *own))


def _own_statement(row: Published) -> str:
    """State what a row has otherwise than its table, or besides."""
    parts = [_alpha(row)] if row.alpha_selection != row.table.alpha_selection else []
    parts += [f"run by: {row.run_by}"] if row.run_by != row.table.run_by else []
    return "; ".join((*parts, row.note) if row.note else parts)


def _alpha(stated: Published | PublishedTable) -> str:
    selection = stated.alpha_selection
    return "nothing is merged" if selection == UNMERGED else f"alpha: {selection}"


def none_published(subjects: Collection[Subject]) -> str:
    """Say that nothing is published for what was measured here."""
    measured = " or ".join(sorted(map(str, subjects))) or "these runs"
    if any(_matches(row, subject) for row in published() for subject in subjects):
        return (
            f"Nothing is quoted for {measured}: what is published there is of other splits, or a "
            "mean over others, than what was measured here."
        )
    titles = {f"{row.backbone.title} on {row.family}": None for row in published()}
    return f"Nothing is quoted for {measured}. There are published numbers for {', '.join(titles)}."


@functools.cache
def published_file(file: Path = FILE) -> PublishedFile:
    """Read the data file. Raises pydantic's ValidationError for one that is not as it should be."""
    import yaml

    return PublishedFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


@functools.cache
def published(file: Path = FILE) -> tuple[Published, ...]:
    """Return every row of the data file, in its order."""
    data = published_file(file)
    return tuple(
        row
        for table in data.tables
        for method, numbers in table.rows.items()
        for row in _rows(table, method, numbers, data)
    )


def _rows(
    table: PublishedTable, method: str, numbers: Sequence[float | None], data: PublishedFile
) -> Iterator[Published]:
    """Yield one row for each family in the columns."""
    by_family: dict[str, dict[str, float]] = {}
    for column, number in zip(table.columns, numbers, strict=True):
        family, _, name = column.rpartition("/")
        if number is not None:
            by_family.setdefault(family or table.family or "", {})[name] = number / 100
    own = table.exceptions.get(method, RowException())
    for family, values in by_family.items():
        yield Published(
            method,
            data.backbones[table.backbone],
            family,
            table,
            shifts=table.shifts if family == table.family else data.families[family],
            alpha_selection=own.alpha_selection or table.alpha_selection,
            run_by=own.run_by or table.run_by,
            note=own.note,
            values=values,
        )


def _matches(row: Published, subject: Subject) -> bool:
    return plain(subject.family) == plain(row.family) and row.backbone.is_of(subject)


def _named(
    row: Published, metrics: Collection[str]
) -> tuple[dict[str, float], Literal["printed", "computed"] | None]:
    """Map the values to the comparison's names: `v2` may be its `ood/imagenet-v2/top1`.

    With the mean over shifts comes how it was made.
    """
    family = plain(row.family)
    shifts = {
        metric: plain(metric.split("/")[1]).removeprefix(family)
        for metric in metrics
        if metric.startswith("ood/") and metric.endswith("/top1") and metric != OOD
    }
    by_plain = {plain(name): value for name, value in row.values.items()}
    values = {metric: by_plain[name] for metric, name in shifts.items() if name in by_plain}
    if "id" in row.values and ID in metrics:
        values = {ID: row.values["id"], **values}
    if OOD in metrics and shifts:
        if MEAN in row.values and {plain(name) for name in row.shifts} == {*shifts.values()}:
            return {**values, OOD: row.values[MEAN]}, "printed"
        if values.keys() >= shifts.keys():
            mean = sum(values[metric] for metric in shifts) / len(shifts)
            return {**values, OOD: mean}, "computed"
    return values, None


def plain(name: str) -> str:
    """Write a name without case and punctuation, as names of one thing differ by these."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
