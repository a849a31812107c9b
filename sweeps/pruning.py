"""Whether a trial goes on: what a sweep's judge hears of its runs, live and after a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from carft_core.files import read_json
from sweeps.judge import Judge, clearly_worse
from sweeps.ledger import Ledger, Trial
from sweeps.metric_names import natural_goal
from sweeps.open_trial import OpenTrial, seed_values
from sweeps.plan import Task
from sweeps.runs import Runs
from sweeps.spec import SweepSpec


class Pruning:
    """Early termination and the race of seeds, as the sweep file asks for them.

    What the judge must know again after a restart stands in the histories of the runs.
    """

    def __init__(self, spec: SweepSpec, ledger: Ledger, runs: Runs) -> None:
        self._spec, self._ledger, self._runs = spec, ledger, runs
        rule = spec.early_terminate
        self.metric = (rule.metric if rule else None) or spec.metric.name
        """The name of the value that is judged, and kept in the ledger after each epoch."""
        self._judge = None if rule is None else Judge(rule, natural_goal(self.metric))
        self._known: set[tuple[int, int, int | None]] = set()
        """Trial, seed and epoch (None: the run's end) of what the judge was told."""
        self._curves: dict[int, dict[int, dict[int, float]]] = {}
        """Of open trials: epoch to seed to value."""
        self._best: tuple[float, list[float]] | None = None
        self._begin()

    @property
    def in_order(self) -> bool:
        """Whether a trial's seeds run one after another, since an earlier one may be enough."""
        return self._judge is not None or self._spec.race_seeds is not None

    def reported(self, trial: OpenTrial, task: Task, report: Mapping[str, Any]) -> str | None:
        """An epoch of one seed is done: why to prune the trial, or None."""
        value = report["metrics"].get(self.metric)
        epoch = int(report["epoch"])
        if value is None or epoch == 0:  # the model before training says nothing of the trial
            return None
        seed = trial.seed_index(task.digest)
        self._keep(trial, seed, epoch, value)
        # Nothing is saved by stopping at the last epoch.
        return self._tell(trial.number, seed, report, decide=epoch < report["epochs"])

    def catch_up(self, trial: OpenTrial, task: Task) -> str | None:
        """Before a run goes on from a checkpoint: hear the epochs that it has behind it.

        The decision on the last one may have died with its driver; the ones before were taken,
        unless the run was begun for another trial.
        """
        history = list(self._history(task.digest))
        for index, report in enumerate(history):
            if trial.is_new or index == len(history) - 1:
                reason = self.reported(trial, task, report)
                if reason is not None:
                    return reason
        return None

    def seed_done(self, trial: OpenTrial, task: Task) -> str | None:
        """One seed's run is complete: why the trial needs no more of them, or None."""
        seed = trial.seed_index(task.digest)
        self._recall(trial.number, seed, task.digest)
        self._run_ended(trial.number, seed)
        race, done = self._spec.race_seeds, seed + 1
        if race is None or self._best is None or not race.after <= done < len(trial.tasks):
            return None
        digests = [item.digest for item in trial.tasks[:done]]
        values = seed_values(self._runs, digests, self._spec.metric)
        return clearly_worse(race, self._spec.metric.goal, values, self._best[1][:done])

    def ended(self, trial: Trial) -> None:
        """The trial has its end, and the ledger says so."""
        self._curves.pop(trial.number, None)
        if trial.state == "pruned" and self._judge is not None:
            self._judge.pruned(trial.number)
        if trial.state == "complete" and self._spec.race_seeds is not None:
            self._compare_with_best(trial)

    def _begin(self) -> None:
        """Know again what an earlier driver knew."""
        for trial in self._ledger.trials():
            for seed, digest in enumerate(trial.runs.values()):
                if self._judge is None:
                    break
                is_trained = (self._runs.folder(digest) / "trained.json").exists()
                is_open = trial.state == "running" and not is_trained
                self._recall(trial.number, seed, digest, but_last=is_open)
                if is_trained:
                    self._run_ended(trial.number, seed)
            self.ended(trial)

    def _recall(self, number: int, seed: int, digest: str, *, but_last: bool = False) -> None:
        history = list(self._history(digest))
        for report in history[:-1] if but_last else history:
            self._tell(number, seed, report, decide=False)

    def _tell(
        self, number: int, seed: int, report: Mapping[str, Any], *, decide: bool
    ) -> str | None:
        """Let the judge know of an epoch, once; its decision where one is wanted."""
        value, epoch = report["metrics"].get(self.metric), int(report["epoch"])
        if self._judge is None or value is None:
            return None
        if (number, seed, epoch) in self._known:
            return None
        self._known.add((number, seed, epoch))
        if decide:
            return self._judge.heard(number, seed, epoch, value)
        self._judge.recall(number, seed, epoch, value)
        return None

    def _run_ended(self, number: int, seed: int) -> None:
        if self._judge is not None and (number, seed, None) not in self._known:
            self._known.add((number, seed, None))
            self._judge.run_ended(number, seed)

    def _keep(self, trial: OpenTrial, seed: int, epoch: int, value: float) -> None:
        """In the ledger: the mean over the seeds that have come so far, for plots and samplers."""
        curves = self._curves.get(trial.number)
        if curves is None:
            curves = self._curves[trial.number] = {}
            for index, task in enumerate(trial.tasks[:seed]):
                for report in self._history(task.digest):
                    known = report["metrics"].get(self.metric)
                    if known is not None:
                        curves.setdefault(int(report["epoch"]), {})[index] = known
        at = curves.setdefault(epoch, {})
        at[seed] = value
        self._ledger.report(trial.number, epoch, sum(at.values()) / len(at))

    def _compare_with_best(self, trial: Trial) -> None:
        value, goal = trial.value, self._spec.metric.goal
        if value is None:
            return
        better = self._best is None or (
            value > self._best[0] if goal == "maximize" else value < self._best[0]
        )
        if better:
            digests = list(trial.runs.values())
            self._best = (value, seed_values(self._runs, digests, self._spec.metric))

    def _history(self, digest: str) -> Iterator[Mapping[str, Any]]:
        """The reports of a run so far, without the one before training."""
        for report in read_json(self._runs.folder(digest) / "history.json") or []:
            if report["epoch"] > 0:
                yield report
