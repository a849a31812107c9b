"""Early termination of trials, and racing over seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from carft_sweep.sweeps.ledger.ledger import Ledger, Trial
from carft_sweep.sweeps.ledger.runs import NO_SEED, RunStore, history
from carft_sweep.sweeps.plan.planner import PlannedRun
from carft_sweep.sweeps.scheduler.active_trial import ActiveTrial, seed_values
from carft_sweep.sweeps.scheduler.proposer import ConstraintMisses
from carft_sweep.sweeps.spec.metrics import Goal, natural_goal
from carft_sweep.sweeps.spec.settings import EarlyTerminate, RaceSeeds
from carft_sweep.sweeps.spec.spec import SweepSpec
from carft_sweep.tracking.errors import counted

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as OptunaTrial
    from optuna.pruners import BasePruner


_FAR = 1e300
"""Stands for infinity: finite, so that medians between two of them are numbers."""


class SeedwisePruner:
    """Decides which trials are pruned, from their reports alone: no files, no clock, no chance.

    For seed index i there is one Optuna study in memory; a trial's value at an epoch there is the
    mean over its seeds 0 to i at that epoch. So a trial's seeds must come in order, and the epochs
    of a seed from 1 upward; different trials may come in any order. What comes twice counts once.
    A run's last epoch is for `replay`: nothing is saved by stopping there, yet others are compared
    with it.
    """

    def __init__(self, rule: EarlyTerminate, goal: Goal) -> None:
        """Make a pruner of the file's rule; `goal` is the direction of `rule.metric`."""
        self._rule, self._goal = rule, goal
        self._sign = 1 if goal == "maximize" else -1
        self._studies: list[Study] = []
        self._trials: dict[tuple[int, int], OptunaTrial] = {}
        """By trial and seed index: the handle that reports to that index's study."""
        self._over: set[tuple[int, int]] = set()
        self._values: dict[tuple[int, int], dict[int, float]] = {}
        """The reported values by epoch, for each trial and seed index."""
        self._means: dict[tuple[int, int], dict[int, float]] = {}
        """The means over seeds 0 to the index, by epoch, for each trial and seed index."""
        self._best: dict[tuple[int, int], float] = {}
        """For `patience`: the mean at the last improvement, signed so that larger is better."""

    def report(self, trial: int, seed_index: int, epoch: int, value: float) -> str | None:
        """Report an epoch of a run; return why its trial should be pruned, in one line, or None."""
        handle = self._report(trial, seed_index, epoch, value)
        if handle is None:
            return None
        is_hopeless = handle.should_prune()  # asked at every epoch, since rungs are kept by it
        if not is_hopeless or epoch < self._rule.min_epochs:
            return None
        mean = self._means[trial, seed_index][epoch]
        if math.isnan(mean):
            return None
        name = self._rule.metric or "the judged metric"
        return f"{name} {mean:.4g} after {counted(epoch, 'epoch')}, by {self._rule.type}"

    def replay(self, trial: int, seed_index: int, epoch: int, value: float) -> None:
        """Repeat the report of an epoch whose decision is known or not needed."""
        handle = self._report(trial, seed_index, epoch, value)
        if handle is not None and self._rule.type == "asha":
            handle.should_prune()  # keeps the trial's value at a rung

    def finish_run(self, trial: int, seed_index: int) -> None:
        """Mark a seed's run as complete, so that later trials are compared with it."""
        from optuna.trial import TrialState

        key = (trial, seed_index)
        if key not in self._trials or key in self._over:
            return
        self._over.add(key)
        last = [mean for mean in self._means[key].values() if not math.isnan(mean)]
        if last:
            self._studies[seed_index].tell(self._trials[key], _finite(last[-1]))
        else:
            self._studies[seed_index].tell(self._trials[key], state=TrialState.FAIL)

    def finish_trial(self, trial: int) -> None:
        """Mark a trial as pruned. Seeds that were complete by then stay complete."""
        from optuna.trial import TrialState

        for seed_index, study in enumerate(self._studies):
            key = (trial, seed_index)
            if key in self._trials and key not in self._over:
                self._over.add(key)
                study.tell(self._trials[key], state=TrialState.PRUNED)

    def _report(self, trial: int, seed_index: int, epoch: int, value: float) -> OptunaTrial | None:
        """Report the mean over the seeds so far; return Optuna's trial, None without a new mean."""
        key = (trial, seed_index)
        values = self._values.setdefault(key, {})
        if epoch < 1 or epoch in values or key in self._over:
            return None
        values[epoch] = value
        seeds = [self._values.get((trial, seed), {}) for seed in range(seed_index + 1)]
        mean = sum(seed.get(epoch, math.nan) for seed in seeds) / len(seeds)
        self._means.setdefault(key, {})[epoch] = mean
        reported = self._optuna_value(key, mean)
        if key not in self._trials:
            self._trials[key] = self._study(seed_index).ask()
        self._trials[key].report(reported, epoch)
        return self._trials[key]

    def _optuna_value(self, key: tuple[int, int], mean: float) -> float:
        """Return the value that Optuna gets for a mean: for NaN the worst. For `patience` an epoch
        without an improvement by more than min_delta is the worst too: Optuna's own min_delta
        allows a trial to get worse by that much, and a flat curve would run on."""
        worst = -self._sign * _FAR
        if math.isnan(mean):
            return worst
        if self._rule.type == "patience":
            mark = self._best.get(key, -math.inf) + self._rule.min_delta
            if self._sign * mean <= mark:
                return worst
            self._best[key] = self._sign * mean
        return _finite(mean)

    def _study(self, seed_index: int) -> Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        while len(self._studies) <= seed_index:
            self._studies.append(
                optuna.create_study(
                    storage=optuna.storages.InMemoryStorage(),
                    sampler=optuna.samplers.RandomSampler(seed=0),  # draws nothing here
                    pruner=pruner(self._rule),
                    direction=self._goal,
                )
            )
        return self._studies[seed_index]


def pruner(rule: EarlyTerminate) -> BasePruner:
    """Return Optuna's pruner for a rule, with every option set; its steps are epochs from 1."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.pruners import MedianPruner, PatientPruner, SuccessiveHalvingPruner, ThresholdPruner

    if rule.type == "median":
        return MedianPruner(
            n_startup_trials=rule.startup_trials,
            n_warmup_steps=rule.min_epochs,
            interval_steps=1,
            n_min_trials=rule.min_trials,
        )
    if rule.type == "asha":
        return SuccessiveHalvingPruner(
            min_resource=rule.min_epochs,
            reduction_factor=rule.reduction_factor,
            min_early_stopping_rate=0,
            bootstrap_count=0,
        )
    if rule.type == "patience":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return PatientPruner(None, patience=rule.patience - 1, min_delta=0.0)
    return ThresholdPruner(
        lower=rule.lower, upper=rule.upper, n_warmup_steps=rule.min_epochs, interval_steps=1
    )


def clearly_worse(
    rule: RaceSeeds, goal: Goal, values: Sequence[float], best: Sequence[float]
) -> str | None:
    """Return why a trial needs no more seeds, in one line, or None. `values` are those of the
    trial's first seeds and `best` the best complete trial's for the same seeds: the mean of the
    paired differences decides. NaN decides nothing."""
    if len(values) < rule.after:
        return None
    sign = 1 if goal == "maximize" else -1
    worse = [sign * (other - own) for own, other in zip(values, best, strict=True)]
    by = sum(worse) / len(worse)
    # 0.8 - 0.75 is a little more than 0.05 in floating point.
    if not by > rule.margin or math.isclose(by, rule.margin, rel_tol=1e-9):
        return None
    own, other = sum(values) / len(values), sum(best) / len(best)
    seeds = "seed" if len(values) == 1 else f"{len(values)} seeds"
    return (
        f"{own:.4g} over its first {seeds} is worse than the best trial's {other:.4g} "
        f"over the same by more than {rule.margin:g}"
    )


def _finite(value: float) -> float:
    return min(max(value, -_FAR), _FAR)


class PruningController:
    """Applies the sweep file's early termination and race of seeds to reports of runs. After a
    restart its state is made anew from the histories of the runs."""

    def __init__(self, spec: SweepSpec, ledger: Ledger, runs: RunStore) -> None:
        self._spec, self._ledger, self._runs = spec, ledger, runs
        self._misses = ConstraintMisses(spec, ledger, runs)
        rule = spec.early_terminate
        self.metric = (rule.metric if rule else None) or spec.metric.name
        """The name of the value that is judged, and kept in the ledger after each epoch."""
        self._pruner = None if rule is None else SeedwisePruner(rule, natural_goal(self.metric))
        self._curves: dict[int, dict[int, dict[int, float]]] = {}
        """By number of each open trial: epoch to seed index to value."""
        for trial in ledger.trials():
            if self._pruner is not None:
                self._replay_trial(self._pruner, trial)
            self.on_trial_end(trial)

    @property
    def in_order(self) -> bool:
        """Whether a trial's seeds run one after another, since earlier seeds may suffice."""
        return self._pruner is not None or self._spec.race_seeds is not None

    def reported(
        self, trial: ActiveTrial, run: PlannedRun, report: Mapping[str, Any]
    ) -> str | None:
        """Report an epoch of one seed; return why to prune the trial, or None."""
        value = report["metrics"].get(self.metric)
        epoch = int(report["epoch"])
        if value is None or epoch == 0:  # the model before training says nothing of the trial
            return None
        seed = trial.seed_index(run.digest)
        self._record_mean(trial, seed, epoch, value)
        if self._pruner is None:
            return None
        if epoch < report["epochs"]:
            return self._pruner.report(trial.number, seed, epoch, value)
        self._pruner.replay(trial.number, seed, epoch, value)  # nothing is saved by stopping here
        return None

    def catch_up(self, trial: ActiveTrial, run: PlannedRun) -> str | None:
        """Report the past epochs of a run that resumes from a checkpoint; return why to prune the
        trial, or None. The decision on the last epoch may have been lost with its driver; earlier
        epochs were decided, unless the run was begun for another trial."""
        reports = list(self._history(run.digest))
        undecided = reports if trial.is_new else reports[-1:]
        reasons = (self.reported(trial, run, report) for report in undecided)
        return next(filter(None, reasons), None)

    def seed_done(self, trial: ActiveTrial, run: PlannedRun) -> str | None:
        """Mark one seed's run as complete; return why the trial needs no more seeds, or None."""
        seed = trial.seed_index(run.digest)
        if self._pruner is not None:
            self._recall(self._pruner, trial.number, seed, self._history(run.digest))
            self._pruner.finish_run(trial.number, seed)
        race, done = self._spec.race_seeds, seed + 1
        if race is None or not race.after <= done < len(trial.planned):
            return None
        if not (best := self._best_values()):
            return None
        digests = [item.digest for item in trial.planned[:done]]
        values = seed_values(self._runs, digests, self._spec.metric)
        return clearly_worse(race, self._spec.metric.goal, values, best[:done])

    def on_trial_end(self, trial: Trial) -> None:
        """Update the pruner after a trial has ended, as the ledger records."""
        self._curves.pop(trial.number, None)
        if trial.state == "pruned" and self._pruner is not None:
            self._pruner.finish_trial(trial.number)

    def _replay_trial(self, judge: SeedwisePruner, trial: Trial) -> None:
        """Report the epochs and results of an earlier driver's trial to the pruner."""
        for seed, digest in enumerate(trial.runs.values()):
            is_trained = (self._runs.folder(digest) / "trained.json").exists()
            reports = list(self._history(digest))
            if trial.state == "running" and not is_trained:
                del reports[-1:]  # the decision on it may have died with its driver
            self._recall(judge, trial.number, seed, reports)
            if is_trained:
                judge.finish_run(trial.number, seed)

    def _recall(
        self, judge: SeedwisePruner, trial: int, seed: int, reports: Iterable[Mapping[str, Any]]
    ) -> None:
        for report in reports:
            value = report["metrics"].get(self.metric)
            if value is not None:
                judge.replay(trial, seed, int(report["epoch"]), value)

    def _record_mean(self, trial: ActiveTrial, seed: int, epoch: int, value: float) -> None:
        """Record a trial's mean over its seeds so far in the ledger, for plots and samplers."""
        curves = self._curves.get(trial.number)
        if curves is None:
            curves = self._curves[trial.number] = {}
            # Of this seed and later ones too: another driver may have heard of their epochs.
            for index, run in enumerate(trial.planned):
                for report in self._history(run.digest):
                    earlier = report["metrics"].get(self.metric)
                    if earlier is not None:
                        curves.setdefault(int(report["epoch"]), {})[index] = earlier
        at = curves.setdefault(epoch, {})
        at[seed] = value
        values = [at[index] for index in sorted(at)]  # another order may change the last bit
        self._ledger.report(trial.number, epoch, sum(values) / len(values))

    def _best_values(self) -> list[float]:
        """Return the first goal's values, in order of the seeds, of the best complete trial that
        meets the sweep's constraint; [] without one."""
        spec, trials = self._spec, self._ledger.trials()
        complete = [trial for trial in trials if trial.value is not None]
        if spec.constraint is not None:
            missed = self._misses.by_trial()
            complete = [trial for trial in complete if missed.get(trial.number, math.inf) <= 0]
        sign = 1 if spec.metric.goal == "maximize" else -1
        best = max(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)
        if best is None:
            return []
        values = seed_values(self._runs, [*best.runs.values()], spec.metric)
        return values * len(spec.seeds) if NO_SEED in best.runs else values

    def _history(self, digest: str) -> Iterator[Mapping[str, Any]]:
        """Return the reports of a run so far, without the report before training."""
        for report in history(self._runs.folder(digest)):
            if report["epoch"] > 0:
                yield report
