"""The next trial of a sweep."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna import create_study

from carft_sweep.sweeps.ledger.ledger import POINTS, Ledger, Trial
from carft_sweep.sweeps.ledger.optuna_copy import frozen_trial
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import is_target_reached, is_tried_again
from carft_sweep.sweeps.plan.planner import PlannedRun, Planner, merge_labels, setting_record
from carft_sweep.sweeps.scheduler.active_trial import ActiveTrial, seed_values
from carft_sweep.sweeps.space import RANDOM_TRIALS
from carft_sweep.sweeps.space.samplers import encode, optuna_distributions, sampler, suggest
from carft_sweep.sweeps.spec.settings import Metric

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from carft_sweep.sweeps.spec.spec import SweepSpec


logger = logging.getLogger(__name__)

NOTHING_MISSED: Mapping[int, float] = MappingProxyType({})
GENERATION = "NSGAIISampler:generation"
"""Where NSGA-II notes a trial's generation, among the trial's system attributes."""


class Proposal(NamedTuple):
    """A proposed point, and the sampler's notes on it that later proposals need
    (`Trial.sampler`)."""

    params: Mapping[str, Any]
    sampler: Mapping[str, Any] = MappingProxyType({})


class ConstraintMisses:
    """By how much trials miss a sweep's constraint. The results of a run are read once: a measured
    run does not change while a driver has the sweep."""

    def __init__(self, spec: SweepSpec, ledger: Ledger, runs: RunStore) -> None:
        self._spec, self._ledger, self._runs = spec, ledger, runs
        self._means: dict[tuple[str | None, tuple[str, ...]], float] = {}
        """By merge and runs the mean of the constraint's metric, once all runs are measured."""

    def by_trial(self) -> dict[int, float]:
        """Return by how much each complete trial, by number, misses the constraint: above 0 it is
        violated. Empty until the reference has a result."""
        constraint = self._spec.constraint
        if constraint is None:
            return {}
        goal = Metric(name=constraint.name)
        baselines = self._ledger.baselines()
        settings = (setting for setting in baselines if setting.algorithm == constraint.of)
        means = (self._mean(goal, setting.runs.values()) for setting in settings)
        reached = [*filter(math.isfinite, means)]
        bound = max(reached, default=math.nan) - constraint.margin
        trial_goal = goal.model_copy(update={"merge": self._spec.goals[0].merge})
        missed = {
            trial.number: bound - self._mean(trial_goal, trial.runs.values())
            for trial in self._ledger.proposals()
            if trial.state == "complete"
        }
        return {number: miss for number, miss in missed.items() if math.isfinite(miss)}

    def _mean(self, goal: Metric, digests: Collection[str]) -> float:
        """Return the mean of the goal's metric over runs, negative where less is better."""
        key = (goal.merge, tuple(digests))
        if key in self._means:
            return self._means[key]
        sign = 1 if goal.goal == "maximize" else -1
        mean = sign * sum(seed_values(self._runs, [*digests], goal)) / max(1, len(digests))
        if math.isfinite(mean):
            self._means[key] = mean
        return mean


def known_trials(
    spec: SweepSpec, ledger: Ledger, missed: Mapping[int, float] = NOTHING_MISSED
) -> Iterator[FrozenTrial]:
    """Yield every trial of a ledger as Optuna's samplers see it: with NSGA-II's generation, and how
    far it misses the constraint (`missed`, by trial number).

    The generation is noted for each proposed point; for points that no sampler proposed (those of
    an earlier ledger, of `try_first`) it follows from the point's number.
    """
    trials, distributions = ledger.proposals(), optuna_distributions(spec.parameters)
    noted = {
        trial.point: trial.sampler[GENERATION] for trial in trials if GENERATION in trial.sampler
    }
    for trial in trials:
        frozen = frozen_trial(trial, spec.parameters, len(spec.goals), distributions)
        generation = noted.get(trial.point, trial.point // RANDOM_TRIALS["nsga2"])
        frozen.system_attrs = {**frozen.system_attrs, GENERATION: generation}
        if trial.number in missed:
            frozen.set_constraint("constraint", missed[trial.number])
        yield frozen


def next_point(
    spec: SweepSpec, ledger: Ledger, point: int, missed: Mapping[int, float] = NOTHING_MISSED
) -> Proposal:
    """Return the point number `point`: a planned one, or the proposal of a new sampler, which
    depends only on the sweep, the trials of its ledger, the number, and
    `missed` (`ConstraintMisses`).

    The sampler sees a copy of the study in memory, so a crash during a proposal leaves nothing
    behind, and a restart changes nothing. Fields that `try_first` leaves out are proposed.
    """
    planned = ledger.recall(POINTS, ())
    if point < len(planned):
        return Proposal(planned[point])
    if spec.method not in ("tpe", "gp", "nsga2"):  # as a type checker reads it
        raise ValueError(f"the points of a {spec.method} sweep are planned before it runs")
    directions = [goal.goal for goal in spec.goals]
    study = create_study(directions=directions, sampler=sampler(spec.method, spec.seed, point))
    study.add_trials(known_trials(spec, ledger, missed))
    if given := spec.fixed_values(point):
        study.enqueue_trial(encode(spec.parameters, given))
    trial = study.ask()
    params = suggest(spec.parameters, trial)
    notes = study.get_trials(deepcopy=False)[trial.number].system_attrs
    return Proposal(params, {GENERATION: notes[GENERATION]} if GENERATION in notes else {})


class TrialProposer:
    """Returns the trials of a sweep one after another, the same ones after any restart. With
    `failed_again` also trials that became NaN are tried again."""

    def __init__(
        self, planner: Planner, ledger: Ledger, runs: RunStore, *, failed_again: bool = False
    ) -> None:
        self._planner, self._ledger, self._spec = planner, ledger, planner.spec
        self._runs = runs
        self._misses = ConstraintMisses(self._spec, ledger, runs)
        self._failed_again = failed_again
        trials = {trial.point: trial for trial in ledger.trials()}
        self._points = deque((at, trials.get(at)) for at in range(self._spec.trial_count))
        """Every point of the sweep, with its trial if it has one."""
        self._twins: dict[frozenset[str], Trial] = {}
        for trial in ledger.trials():
            self.on_trial_end(trial)

    def next_trial(self) -> ActiveTrial | None:
        """Return the next trial, proposed if necessary; None after the last trial."""
        if not self._points:
            return None
        point, trial = self._points.popleft()
        is_new = trial is None
        if trial is None:
            if is_target_reached(self._ledger):
                return None
            trial, planned = self._propose(point, None)
        elif is_tried_again(trial, failed_again=self._failed_again):
            # What broke it may be mended by now; a trial ends once, so this is another one.
            trial, planned = self._propose(point, trial.params)
        else:
            planned = self._planner.trial(trial.params, trial.number)
        algorithm = planned[0].config.algorithm
        if algorithm.trains or not algorithm.starts_at_zero_shot:
            # What the file asks for now; a finished trial keeps what it was asked with.
            self._ledger.remember("merges", merge_labels(planned[0].config))
        return ActiveTrial(trial, planned, recorded=trial.state != "running", is_new=is_new)

    def on_trial_end(self, trial: Trial) -> None:
        """Remember `trial`, if it is the first with its runs, for later trials with equal runs."""
        first = self._twins.setdefault(frozenset(trial.runs.values()), trial)
        if first.number == trial.number:
            self._twins[frozenset(trial.runs.values())] = trial

    def _propose(
        self, point: int, params: Mapping[str, Any] | None
    ) -> tuple[Trial, Sequence[PlannedRun]]:
        spec, ledger = self._spec, self._ledger
        proposal = Proposal(params or {})
        if params is None:
            proposal = next_point(spec, ledger, point, self._misses.by_trial())
        planned = self._planner.trial(proposal.params, ledger.next_number)
        record = setting_record(planned)
        trial = self._as_its_twin(ledger.add_trial(point, record, proposal.sampler))
        logger.info("trial %d: %s", trial.number, dict(proposal.params))
        return trial, planned

    def _as_its_twin(self, trial: Trial) -> Trial:
        """Return the trial, pruned if its runs are exactly those of a pruned trial, since it would
        be pruned again."""
        twin = self._twins.get(frozenset(trial.runs.values()))
        if twin is None or twin.state != "pruned":
            return trial
        return self._ledger.prune(trial.number, "duplicate", f"the same as trial {twin.number}")
