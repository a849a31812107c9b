"""What was chosen is run again on fresh seeds, so that no luck of the choice is in the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sweeps.ledger import Ledger
from sweeps.mirror import CONFIRM_RUNS, CONFIRMATIONS
from sweeps.plan import Planner, Task, kept
from sweeps.progress import Progress
from sweeps.records import records, rule
from sweeps.runs import Runs
from tracking.records import Arm, group
from tracking.selection import choose_each


class Confirming:
    """The runs of a sweep that come when every trial has ended; the same ones after any restart.

    More trials may change a choice: then the new one is confirmed.
    """

    def __init__(self, planner: Planner, ledger: Ledger, runs: Runs, progress: Progress) -> None:
        self._planner, self._ledger, self._runs = planner, ledger, runs
        self._progress = progress
        self._seeds = planner.spec.confirm_seeds
        self._to_come = len(self._seeds) * len(planner.spec.trained_algorithms)

    def begin(self) -> int:
        """How many runs there will be, if something can be chosen of every algorithm."""
        self._keep_count()
        return self._to_come

    def tasks(self) -> list[Task]:
        """All of them, the first time that they are asked for: when every trial has its end."""
        if not self._seeds:
            return []
        settings = [self._planner.confirmation(*chosen) for chosen in self._chosen()]
        tasks = [task for each in settings for task in each]
        self._seeds = ()
        self._progress.skip(self._to_come - len(tasks))
        self._to_come = len(tasks)
        self._ledger.remember(CONFIRMATIONS, [kept(each) for each in settings])
        self._keep_count()
        return tasks

    def _keep_count(self) -> None:
        """For those who watch the sweep."""
        if self._to_come or self._ledger.recall(CONFIRM_RUNS):
            self._ledger.remember(CONFIRM_RUNS, self._to_come)

    def _chosen(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The algorithm and the fields of each setting that the verdict is about."""
        spec = self._planner.spec
        arms = group(records(self._ledger, self._runs))
        choices = choose_each(arms, rule(self._ledger.spec), spec.seeds)
        for choice in choices.values():
            if choice.arm.trains:
                yield choice.arm.algorithm, self._params(choice.arm)

    def _params(self, arm: Arm) -> dict[str, Any]:
        """As they were proposed: an arm has lists as text."""
        if arm.trial is not None:
            return next(
                dict(trial.params) for trial in self._ledger.trials() if trial.number == arm.trial
            )
        digests = {run.digest for run in arm.runs}
        return next(
            dict(baseline["params"])
            for baseline in self._ledger.recall("baselines", [])
            if digests & {*baseline["runs"].values()}
        )
