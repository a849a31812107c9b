"""A trial whose runs are being collected: which seeds are left, and what they came to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from carft_sweep.sweeps.engines.base import Failure
from carft_sweep.sweeps.ledger.ledger import Trial
from carft_sweep.sweeps.ledger.runs import RunStore, measured
from carft_sweep.sweeps.plan.planner import PlannedRun
from carft_sweep.sweeps.spec.settings import Metric
from carft_sweep.tracking.comparison.runs import UNMERGED

NOTHING: Mapping[str, Mapping[str, float]] = {"metrics": {}}
"""In place of the measurements of a model that was not evaluated."""


@dataclass
class ActiveTrial:
    """A trial whose runs its driver collects."""

    trial: Trial
    planned: Sequence[PlannedRun]
    """One for each seed, in order."""
    recorded: bool
    """Whether its end is in the ledger."""
    is_new: bool
    """Whether this driver proposed it, so that no epoch of it has been judged before."""
    pruned: bool = False
    outcomes: dict[str, Failure | None] = field(default_factory=dict)
    """By digest of each run that has ended: why it failed, None where it is done."""
    pending_seeds: deque[PlannedRun] = field(default_factory=deque)
    """Runs of further seeds, each of which is queued when the run before is done."""

    @property
    def number(self) -> int:
        """Number of the trial in the ledger and in Optuna."""
        return self.trial.number

    @property
    def is_settled(self) -> bool:
        """Whether every run of the trial has ended."""
        return all(run.digest in self.outcomes for run in self.planned)

    @property
    def is_over(self) -> bool:
        """Whether further epochs are useless: the trial was pruned, or a seed became NaN."""
        if self.pruned or self.trial.state == "failed":  # opened as failed: for good
            return True
        kinds = [failure.kind for failure in self.outcomes.values() if failure is not None]
        return self.trial.state == "running" and "nan" in kinds

    def seed_index(self, digest: str) -> int:
        """Return the index of a run among the trial's runs."""
        return next(i for i, run in enumerate(self.planned) if run.digest == digest)


def trial_values(
    trial: ActiveTrial, runs: RunStore, goals: Sequence[Metric]
) -> list[float] | Failure:
    """Return the mean over the trial's runs for each goal; a Failure if a run failed or a value is
    missing."""
    for failure in filter(None, trial.outcomes.values()):
        return failure
    digests = [run.digest for run in trial.planned]
    means: list[float] = []
    for goal in goals:
        values = seed_values(runs, digests, goal)
        if not all(map(math.isfinite, values)):
            return Failure("nan", f"{goal.name} is not there or not finite")
        means.append(sum(values) / len(values))
    return means


def seed_values(runs: RunStore, digests: Sequence[str], goal: Metric) -> list[float]:
    """Return the goal's metric of each complete run; NaN where it was not measured."""
    evaluations = (measured(runs.folder(digest), goal.merge or UNMERGED) for digest in digests)
    return [float((item or NOTHING)["metrics"].get(goal.name, math.nan)) for item in evaluations]
