"""A trial whose runs are being collected: which seeds are left, and what they came to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sweeps.engines.base import Failure
from sweeps.ledger.runs import RunStore
from sweeps.ledger.trials import Trial
from sweeps.plan.tasks import RunTask
from sweeps.results.records import measured
from sweeps.spec.settings import Metric
from tracking.comparison.runs import UNMERGED

NOTHING: Mapping[str, Mapping[str, float]] = {"metrics": {}}
"""Measured of a model that was not evaluated."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended in this sweep."""

    state: Literal["done", "failed"]
    failure: Failure | None = None


@dataclass
class ActiveTrial:
    """One trial while its driver works on it."""

    trial: Trial
    tasks: Sequence[RunTask]
    """One for each seed, in order."""
    recorded: bool
    """Its end is in the ledger."""
    is_new: bool
    """Proposed by this driver: nothing is known of its decisions yet."""
    pruned: bool = False
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By digest."""
    pending_seeds: deque[RunTask] = field(default_factory=deque)
    """Seeds whose turn comes when the one before is done."""

    @property
    def number(self) -> int:
        """Optuna's."""
        return self.trial.number

    @property
    def is_settled(self) -> bool:
        """Whether every run has ended."""
        return all(task.digest in self.outcomes for task in self.tasks)

    @property
    def is_over(self) -> bool:
        """Whether no further epoch of it is worth anything: pruned, or a seed became NaN."""
        if self.pruned or self.trial.state == "failed":  # opened as failed: for good
            return True
        failures = [item.failure for item in self.outcomes.values() if item.failure is not None]
        return self.trial.state == "running" and any(item.kind == "nan" for item in failures)

    def seed_index(self, digest: str) -> int:
        """The place of a run among the trial's."""
        return next(i for i, task in enumerate(self.tasks) if task.digest == digest)


def end(trial: ActiveTrial, runs: RunStore, goals: Sequence[Metric]) -> list[float] | Failure:
    """For each goal the mean over the trial's runs; or why it has none."""
    for outcome in trial.outcomes.values():
        if outcome.failure is not None:
            return outcome.failure
    digests = [task.digest for task in trial.tasks]
    found: list[float] = []
    for goal in goals:
        values = seed_values(runs, digests, goal)
        if not all(map(math.isfinite, values)):
            return Failure("nan", f"{goal.name} is not there or not finite")
        found.append(sum(values) / len(values))
    return found


def seed_values(runs: RunStore, digests: Sequence[str], goal: Metric) -> list[float]:
    """The goal's metric of each complete run; NaN where it was not measured."""
    found = (measured(runs.folder(digest), goal.merge or UNMERGED) for digest in digests)
    return [float((item or NOTHING)["metrics"].get(goal.name, math.nan)) for item in found]
