"""DomainBed's table: a row for each algorithm, a column for each task, and their average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev

AVERAGE = "Avg"


@dataclass(frozen=True)
class TaskCell:
    """An accuracy over seeds, in fractions."""

    by_seed: Mapping[int | None, float]

    @property
    def mean(self) -> float | None:
        """None where no seed has it."""
        return fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def error(self) -> float | None:
        """The standard error with which DomainBed prints its means; None below two seeds.

        The spread has the divisor n, not n - 1 (`collect_results.format_mean`, NumPy's default).
        """
        values = list(self.by_seed.values())
        return pstdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


@dataclass(frozen=True)
class TaskLine:
    """One algorithm, unmerged or through one merge."""

    label: str
    """As the row of the comparison has it."""
    cells: Mapping[str, TaskCell]
    """By task."""

    @property
    def average(self) -> TaskCell:
        """For each seed the mean over the tasks first: of the seeds that every task has.

        Where no seed changes a value it counts for each.
        """
        columns = list(self.cells.values())
        shared = [seed for seed in columns[0].by_seed if all(seed in c.by_seed for c in columns)]
        return TaskCell({seed: fmean(c.by_seed[seed] for c in columns) for seed in shared})


@dataclass(frozen=True)
class DomainBedTable:
    """The table, and how it came about."""

    field: str
    """The parameter whose values are the tasks."""
    endpoints: Mapping[str, str]
    """By task: the metric in its column."""
    lines: tuple[TaskLine, ...]
    notes: tuple[str, ...]
    """What the numbers are, and how settings were chosen."""
    settings: Mapping[str, str]
    """By task: the setting with the best value over all seeds, where there is one."""

    @property
    def caption(self) -> str:
        """One paragraph."""
        return " ".join(self.notes)

    def of(self, label: str) -> TaskLine | None:
        """Find the line of a row of the comparison."""
        return next((line for line in self.lines if line.label == label), None)
