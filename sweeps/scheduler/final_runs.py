"""The runs that come when every trial has ended: of what was chosen on fresh seeds, and soups.

Fresh seeds are those that no choice has seen, so that no luck of the choice is in the verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.sweeps.ledger.ledger import CONFIRMATIONS, FINAL_RUNS, SOUPS, Ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.plan.planner import PlannedRun, Planner, setting_record
from carft_sweep.sweeps.results.records import comparison_spec, records
from carft_sweep.sweeps.scheduler.progress import Progress
from carft_sweep.sweeps.space.points import baseline_params
from carft_sweep.sweeps.spec.settings import After
from carft_sweep.tracking.comparison.runs import Arm, group, params_key
from carft_sweep.tracking.comparison.selection import bounded, select, select_each
from carft_sweep.tracking.comparison.spec import SelectionRule


class FinalRuns:
    """The confirmations and soups of a sweep, the same ones after any restart. More trials may
    change a choice: then the new one is confirmed, and made into a soup."""

    def __init__(
        self, planner: Planner, ledger: Ledger, runs: RunStore, progress: Progress
    ) -> None:
        self._planner, self._ledger, self._runs = planner, ledger, runs
        self._progress, self._spec = progress, planner.spec
        fresh = len(self._spec.confirm_seeds) * len(self._spec.trained_algorithms)
        self._to_come = fresh + len(self._spec.after)
        self._are_planned = False

    def begin(self) -> int:
        """Return the maximal number of confirmations and soups."""
        self._keep_count()
        return self._to_come

    @property
    def are_due(self) -> bool:
        """Whether the sweep has final runs that `plan` has not returned yet."""
        return not self._are_planned and bool(self._spec.confirm_seeds or self._spec.after)

    def plan(self) -> list[PlannedRun]:
        """Return all confirmations and soups, once, as soon as every trial has ended."""
        if not self.are_due:
            return []
        self._are_planned = True
        arms = group(records(self._ledger, self._runs))
        settings: list[list[PlannedRun]] = []
        if self._spec.confirm_seeds:
            fresh = [self._planner.confirmation(*chosen) for chosen in self._judged_settings(arms)]
            self._ledger.remember(CONFIRMATIONS, [setting_record(each) for each in fresh])
            settings += fresh
        if self._spec.after:
            soups = [soup for item in self._spec.after for soup in self._soups(item, arms)]
            self._ledger.remember(SOUPS, [setting_record(each) for each in soups])
            settings += soups
        planned = [run for each in settings for run in each]
        self._progress.skip(self._to_come - len(planned))
        self._to_come = len(planned)
        self._keep_count()
        return planned

    def _keep_count(self) -> None:
        """Record the number of final runs, which `watch` shows."""
        if self._to_come or self._ledger.recall(FINAL_RUNS):
            self._ledger.remember(FINAL_RUNS, self._to_come)

    def _judged_settings(self, arms: Sequence[Arm]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (algorithm, fields) of each selected setting that trains: to be confirmed."""
        for choice in select_each(arms, self._rule(arms), self._spec.seeds).values():
            if choice.arm.trains:
                yield choice.arm.algorithm, self._params(choice.arm)

    def _soups(self, item: After, arms: Sequence[Arm]) -> Iterator[list[PlannedRun]]:
        """Yield the run, in a list, of each soup of `item`: one of the selected setting, or one of
        all settings for each value of the fields that the soup has too, such as `model.name`."""
        ours = [arm for arm in arms if arm.algorithm == item.of.algorithm and not arm.confirms]
        if item.of.settings == "selected":
            choice = select(ours, self._rule(arms), self._spec.seeds)
            ours = [] if choice is None else [choice.arm]
        members: dict[str, set[str]] = {}
        points: dict[str, Mapping[str, Any]] = {}
        for arm in (arm for arm in ours if arm.done):
            params = baseline_params(item.algorithm, self._params(arm))
            points[params_key(params)] = params
            members.setdefault(params_key(params), set()).update(run.digest for run in arm.done)
        least = getattr(ALGORITHMS[item.algorithm["name"]], "least_members", 1)
        for key, point in points.items():
            if len(members[key]) >= least:
                yield self._planner.soup(item, point, sorted(members[key]))
        if not any(len(digests) >= least for digests in members.values()):
            needed = f"{least} or more finished runs of {item.of.algorithm}"
            self._progress.note(f"no {item.algorithm['name']}: it takes {needed}")

    def _rule(self, arms: Sequence[Arm]) -> SelectionRule:
        return bounded(comparison_spec(self._ledger.spec).rule, arms)

    def _params(self, arm: Arm) -> dict[str, Any]:
        """Return the fields of an arm as they were proposed, since an arm has lists as text."""
        if arm.trial is not None:
            return dict(self._ledger.proposal(arm.trial).params)
        digests, baselines = {run.digest for run in arm.runs}, self._ledger.baselines()
        own = (item.params for item in baselines if digests & {*item.runs.values()})
        return dict(next(own))
