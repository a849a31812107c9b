"""DomainBed's table: a row for each algorithm, a column for each task, and their average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

AVERAGE = "Avg"
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
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

    def parts(self) -> tuple[str, str]:
        """Mean and error in percent as printed; the latter may be empty."""
        if self.mean is None:
            return NOTHING, ""
        return f"{100 * self.mean:.1f}", "" if self.error is None else f"{100 * self.error:.1f}"

    def text(self) -> str:
        """`81.2 ± 0.4`, `81.2` where one seed has it, or a dash."""
        mean, error = self.parts()
        return f"{mean} ± {error}" if error else mean

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON."""
        seeds = [{"seed": seed, "value": value} for seed, value in self.by_seed.items()]
        return {"mean": self.mean, "error": self.error, "values": seeds}


@dataclass(frozen=True)
class Line:
    """One algorithm, unmerged or through one merge."""

    label: str
    """As the row of the comparison has it."""
    cells: Mapping[str, Cell]
    """By task."""

    @property
    def average(self) -> Cell:
        """For each seed the mean over the tasks first: of the seeds that every task has.

        Where no seed changes a value it counts for each.
        """
        columns = list(self.cells.values())
        shared = [seed for seed in columns[0].by_seed if all(seed in c.by_seed for c in columns)]
        return Cell({seed: fmean(c.by_seed[seed] for c in columns) for seed in shared})


@dataclass(frozen=True)
class Protocol:
    """The table, and how it came about."""

    field: str
    """The parameter whose values are the tasks."""
    endpoints: Mapping[str, str]
    """By task: the metric in its column."""
    lines: tuple[Line, ...]
    told: tuple[str, ...]
    """What the numbers are, and how settings were chosen."""
    settings: Mapping[str, str]
    """By task: the setting with the best value over all seeds, where there is one."""

    @property
    def caption(self) -> str:
        """One paragraph."""
        return " ".join(self.told)

    def heads(self) -> list[str]:
        """Of the columns."""
        return ["algorithm", *self.endpoints, AVERAGE]

    def rows(self) -> Iterator[tuple[str, Sequence[Cell]]]:
        """Each line's name and its cells, the average last."""
        for line in self.lines:
            yield line.label, [*(line.cells[task] for task in self.endpoints), line.average]

    def of(self, label: str) -> Line | None:
        """The line of a row of the comparison."""
        return next((line for line in self.lines if line.label == label), None)

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON; accuracies as fractions."""
        return {
            "field": self.field,
            "metrics": dict(self.endpoints),
            "caption": self.caption,
            "settings": dict(self.settings),
            "rows": [
                {
                    "label": line.label,
                    "cells": {task: cell.as_dict() for task, cell in line.cells.items()},
                    "average": line.average.as_dict(),
                }
                for line in self.lines
            ],
        }
