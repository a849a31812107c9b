"""Which trial comes next: what is known of each point already, or what the method proposes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweeps.ledger import Ledger, Trial
from sweeps.open_trial import OpenTrial
from sweeps.plan import Planner, kept, merge_labels
from sweeps.proposals import proposal, propose

ADAPTIVE = frozenset({"tpe", "gp", "nsga2"})
"""Methods that propose by what came of earlier trials."""


class Asking:
    """The trials of a sweep, one after another; the same ones after any restart.

    `carried` are points of an earlier generation, proposed again before anything new. With
    `failed_again` also trials that became NaN are tried again.
    """

    def __init__(
        self,
        planner: Planner,
        ledger: Ledger,
        *,
        carried: Sequence[Mapping[str, Any]] = (),
        failed_again: bool = False,
    ) -> None:
        self._planner, self._ledger, self._spec = planner, ledger, planner.spec
        self._carried = carried
        self._failed_again = failed_again
        self._points = self._asked()
        self._twins: dict[frozenset[str], Trial] = {}
        self._is_reached = False
        """Some trial is as good as `metric.target`."""
        for trial in ledger.trials():
            self._remember(trial)

    @property
    def is_adaptive(self) -> bool:
        """Whether the next proposal depends on how earlier trials end."""
        return self._spec.method in ADAPTIVE

    def next(self) -> OpenTrial | None:
        """The next trial, proposed if need be; None when there is none any more."""
        point, trial = next(self._points, (None, None))
        if point is None:
            return None
        is_new = trial is None
        if trial is None:
            if self._is_reached:
                return None
            trial = self._propose(point, None)
        elif trial.state == "failed" and (self._failed_again or not _is_for_good(trial)):
            # What broke it may be mended by now; a finished trial cannot be told again.
            trial = self._propose(point, trial.params)
        tasks = self._planner.trial(trial.params, trial.number)
        algorithm = tasks[0].config.algorithm
        if algorithm.trains or not algorithm.starts_at_zero_shot:
            # What the file asks for now; a finished trial keeps what it was asked with.
            self._ledger.remember("merges", merge_labels(tasks[0].config))
        return OpenTrial(trial, tasks, told=trial.state != "running", is_new=is_new)

    def ended(self, point: int) -> None:
        """The trial at that point has its end in the ledger."""
        self._remember(self._ledger.trial(point))

    def _asked(self) -> Iterator[tuple[int, Trial | None]]:
        """Every point of the sweep, with the trial that is there already."""
        known = {trial.point: trial for trial in self._ledger.trials()}
        for point in range(self._spec.trial_count):
            yield point, known.get(point)

    def _propose(self, point: int, params: Mapping[str, Any] | None) -> Trial:
        if params is None and point < len(self._carried):
            params = self._carried[point]
        spec, ledger = self._spec, self._ledger
        found = propose(spec, ledger, point) if params is None else proposal(spec, params)
        tasks = self._planner.trial(found.params)
        trial = ledger.propose(
            point,
            stored=found.stored,
            distributions=found.distributions,
            attributes=kept(tasks),
            system_attrs=found.system_attrs,
        )
        return self._as_its_twin(trial)

    def _as_its_twin(self, trial: Trial) -> Trial:
        """A trial with the very runs of one that was pruned is told so: it would be again.

        One with the runs of a complete trial has its value as soon as it is looked at.
        """
        twin = self._twins.get(frozenset(trial.runs.values()))
        if twin is None or twin.state != "pruned":
            return trial
        self._ledger.prune(trial.number, "duplicate", f"the same as trial {twin.number}")
        return self._ledger.trial(trial.point)

    def _remember(self, trial: Trial) -> None:
        first = self._twins.setdefault(frozenset(trial.runs.values()), trial)
        if first.number == trial.number:
            self._twins[frozenset(trial.runs.values())] = trial
        metric = self._spec.metric
        if metric.target is not None and trial.value is not None:
            over = trial.value - metric.target
            self._is_reached |= (over if metric.goal == "maximize" else -over) >= 0


def _is_for_good(trial: Trial) -> bool:
    return (trial.reason or {}).get("kind") == "nan"
