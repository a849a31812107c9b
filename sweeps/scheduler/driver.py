"""The driver of a sweep: which run is next, and what follows from how it ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from carft_core.config import TrialConfig
from carft_core.run import is_complete
from sweeps.engines.base import Decision, Failure, Job, Wait
from sweeps.ledger.runs import Runs
from sweeps.ledger.trials import Ledger
from sweeps.plan.tasks import Planner, RunTask, setting_record
from sweeps.results.records import measured
from sweeps.results.tracker import UNMERGED, TrackedSweep
from sweeps.scheduler.active_trial import OpenTrial, Outcome, end
from sweeps.scheduler.final_runs import FinalRuns
from sweeps.scheduler.progress import Progress
from sweeps.scheduler.proposer import Asking
from sweeps.scheduler.pruning import Pruning
from sweeps.scheduler.retries import Breaker, RetryPolicy, halved, node_of
from sweeps.scheduler.webhook import Event


def _nobody(*_: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Listeners:
    """One function for each kind of news."""

    alive: Callable[[], None] = _nobody
    """The driver is about to act. Raises when the sweep is another driver's by now."""
    told: Callable[[], None] = _nobody
    """A trial has its end."""
    alarm: Callable[[Event, str], None] = _nobody
    """`run_failed` or `breaker`, and what happened."""


NOBODY = Listeners()


_KEEP_AFTER = 10.0
"""Seconds between two records: so much is forgotten when a driver dies."""
_KEY = "seconds"


class TimeBudget:
    """Counts the seconds in which somebody drove the sweep; without a limit it only counts."""

    def __init__(self, ledger: Ledger, limit: float | None) -> None:
        self._ledger = ledger
        self._limit = limit
        self._before: float = ledger.recall(_KEY, 0.0)
        self._began = self._kept = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._began

    @property
    def is_used_up(self) -> bool:
        """Whether nothing may be started any more."""
        return self._limit is not None and self.spent >= self._limit

    def count(self, *, now: bool = False) -> None:
        """Keep what was spent, at most every ten seconds."""
        if now or time.monotonic() - self._kept >= _KEEP_AFTER:
            self._kept = time.monotonic()
            self._ledger.remember(_KEY, self.spent)


class Driver:
    """A Handler. Runs are given out in order: zero-shot, baselines, then trials with their seeds.

    A method that learns from results is asked when there is room for a run, so that with one run
    at a time the same sweep asks the same.
    """

    def __init__(
        self,
        planner: Planner,
        ledger: Ledger,
        runs: Runs,
        *,
        asking: Asking,
        tracked: TrackedSweep,
        progress: Progress,
        fresh: bool = False,
        failed_again: bool = False,
        listeners: Listeners = NOBODY,
    ) -> None:
        self.planner, self.ledger, self.runs = planner, ledger, runs
        self.tracked, self.progress = tracked, progress
        self.outcomes: dict[str, Outcome] = {}
        self._closed_early = False
        """Whether a run was closed that is still to be finished."""
        self.broken: str | None = None
        """Why the sweep was given up."""
        self._spec = planner.spec
        self._asking, self._listeners = asking, listeners
        self._final_runs = FinalRuns(planner, ledger, runs, progress)
        self._pruning = Pruning(planner.spec, ledger, runs)
        self._retries = RetryPolicy(planner.spec.retries)
        self._breaker = Breaker(planner.spec.breaker)
        self._budget = TimeBudget(ledger, planner.spec.time_budget)
        self._fresh, self._failed_again = fresh, failed_again
        self._queue: deque[RunTask] = deque()
        self._waiting: deque[RunTask] = deque()
        self._active: dict[str, RunTask] = {}
        self._workers: dict[str, str] = {}
        self._renewed: set[str] = set()
        self._open: dict[int, OpenTrial] = {}

    def begin(self) -> None:
        """Plan the baselines, and keep in the ledger what a comparison needs to know of them."""
        settings = self.planner.baselines()
        self.ledger.remember("baselines", [setting_record(tasks) for tasks in settings])
        self.ledger.remember("trial_count", self._spec.trial_count)
        self._queue.extend(task for tasks in settings for task in tasks)
        runs = len(self._queue) + self._spec.trial_count * len(self._spec.seeds)
        self.progress.begin(runs + self._final_runs.begin())

    def next_job(self) -> Job | Wait:
        """See Handler."""
        self._listeners.alive()
        while True:
            if self.broken is not None or self.is_out_of_time:
                return Wait.NEVER
            self._retry_waiting()
            if not self._queue and not self._ask() and not self._conclude():
                return Wait.LATER if self._active or self._waiting else Wait.NEVER
            if self._queue:
                job = self._job(self._queue.popleft())
                if job is not None:
                    return job

    @property
    def is_out_of_time(self) -> bool:
        """Whether the sweep has used up its time budget."""
        return self._budget.is_used_up

    @property
    def has_work_left(self) -> bool:
        """Whether the same command would find something to run, besides what has failed."""
        return (
            self._closed_early
            or any(not self._is_done(task) for task in (*self._queue, *self._waiting))
            or any(not trial.told for trial in self._open.values())
            or self._asking.has_more
            or self._final_runs.are_due
        )

    def started(self, job: Job, worker: str) -> None:
        """See Handler."""
        self._listeners.alive()
        known = self.runs.read(job.digest)
        self._workers[job.digest] = worker
        self.progress.started(job.label)
        attempt = known.attempts if known else 1
        task = self._active[job.digest]
        self.tracked.started(task, job.workdir, attempt=attempt, worker=worker)

    def alive(self, job: Job) -> None:
        """See Handler."""
        self._listeners.alive()
        self.runs.renew(job.digest)
        self._budget.count()

    def reported(self, job: Job, report: Mapping[str, Any]) -> Decision:
        """See Handler."""
        self._listeners.alive()
        task = self._active[job.digest]
        self.progress.epoch(job.label, report)
        self.tracked.reported(task, report)
        trial = self._trial(task)
        if trial is None:
            return Decision.CONTINUE
        reason = None if trial.told else self._pruning.reported(trial, task, report)
        if reason is not None:
            self._prune(trial, reason)
        return Decision.STOP if trial.is_over else Decision.CONTINUE

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        """See Handler."""
        self._listeners.alive()
        task = self._active.pop(job.digest)
        self.runs.end(job.digest, "done")
        self.runs.settle(job.digest)
        self._breaker.succeeded(node_of(self._workers.get(job.digest, "")))
        for warning in result.get("warnings", ()):
            self.progress.note(f"{task.label}: {warning}")
        self._done(task, reused_from=None)

    def stopped(self, job: Job) -> None:
        """See Handler."""
        self._listeners.alive()
        task = self._active.pop(job.digest)
        self.runs.end(job.digest, "stopped")
        trial = self._trial(task)
        if trial is not None and trial.pruned:
            self.tracked.pruned(task, job.workdir)
            return
        if trial is not None and trial.is_over:
            self.progress.stopped(task.label, "another seed of its trial became NaN")
            self.progress.skip(1)
        else:
            self._closed_early = True
            self.progress.stopped(task.label)
        self._workers.pop(job.digest, None)
        self.tracked.stopped(task)

    def failed(self, job: Job, failure: Failure) -> bool:
        """See Handler."""
        self._listeners.alive()
        task, trial = self._active[job.digest], self._trial(self._active[job.digest])
        if trial is not None and trial.pruned:  # it was to be stopped, and did not wait for it
            self.stopped(job)
            return False
        del self._active[job.digest]
        told = {"kind": failure.kind, "message": failure.message, "log_tail": failure.log_tail}
        self.runs.end(job.digest, "failed", told)
        is_over = trial is not None and trial.is_over
        again = not is_over and self._retries.again(job.digest, failure, self._config(task))
        self._note_failure(task, failure, again=again)
        if again:
            if failure.kind == "out_of_memory":
                self.runs.halve(job.digest)
            self._queue.appendleft(task)
            return True
        if self.runs.restore(job.digest):
            self.runs.end(job.digest, "done")
            self.progress.note(f"{task.label}: the earlier result of this run was kept")
        self.tracked.failed(task, failure, job.workdir)
        self._settle(task, Outcome("failed", failure))
        return False

    def abandon(self) -> None:
        """The engine has failed under its jobs: they are stopped, and can go on later."""
        for task in self._active.values():
            self.runs.end(task.digest, "stopped")
            self.tracked.stopped(task)
        self._active.clear()
        self._withdraw_queued()

    def close(self) -> None:
        """Keep what only this driver knows, and leave no run open that was to be tried again."""
        self._listeners.alive()
        self._withdraw_queued()
        self._budget.count(now=True)

    def _withdraw_queued(self) -> None:
        for task in (*self._queue, *self._waiting):
            self._withdraw(task)

    def _withdraw(self, task: RunTask) -> None:
        """End what the tracker has of a run that is not tried again after all."""
        trial = self._trial(task)
        if trial is not None and trial.pruned:
            self.tracked.pruned(task, self.runs.folder(task.digest))
        elif task.digest not in self.outcomes and self._workers.pop(task.digest, None) is not None:
            self.tracked.stopped(task)

    def _is_done(self, task: RunTask) -> bool:
        return task.digest in self.outcomes or is_complete(
            self.runs.folder(task.digest), task.config
        )

    def _trial(self, task: RunTask) -> OpenTrial | None:
        return None if task.trial is None else self._open[task.trial]

    def _ask(self) -> bool:
        """Queue the runs of the next trial; False when there is none, or not yet."""
        if self._asking.is_adaptive and self._waiting and not self._active:
            return False  # another sweep trains what the next proposal depends on
        trial = self._asking.next()
        if trial is None:
            return False
        self._open[trial.number] = trial
        tasks = list(trial.tasks)
        if trial.trial.state == "pruned":
            trial.pruned = True
            self.progress.skip(len(tasks))
            for task in tasks:
                self.tracked.pruned(task, self.runs.folder(task.digest))
            return True
        if self._pruning.in_order and not trial.told:
            trial.waiting.extend(tasks[1:])
            del tasks[1:]
        self._queue.extend(tasks)
        return True

    def _conclude(self) -> bool:
        """Queue the runs that are made of what was chosen, when every other run has ended."""
        if not self._active and not self._waiting:
            self._queue.extend(self._final_runs.tasks())
        return bool(self._queue)

    def _job(self, task: RunTask) -> Job | None:
        """The job that a run still needs; None when it is settled, or waits for somebody."""
        trial = self._trial(task)
        known = self.outcomes.get(task.digest)
        if known is not None:
            if trial is None or not trial.pruned:  # what is pruned is counted off already
                self.progress.skip(1)
            self._settle(task, known)
            return None
        if task.digest in self._active or self.runs.is_taken(task.digest):
            self._waiting.append(task)
            return None
        if self._is_settled_by_earlier(task):
            return None
        if trial is not None and trial.is_over:
            if not trial.pruned:
                self.progress.skip(1)
            self._withdraw(task)
            return None
        if trial is not None and not trial.told:
            reason = self._pruning.catch_up(trial, task)
            if reason is not None:
                self._prune(trial, reason)
                self.tracked.pruned(task, self.runs.folder(task.digest))
                return None
        if not self.runs.take(task.digest, task.label, self.ledger.name):
            self._waiting.append(task)
            return None
        if self._fresh and task.digest not in self._renewed:
            self._renewed.add(task.digest)
            self.runs.put_aside(task.digest)
        self._active[task.digest] = task
        return Job(
            digest=task.digest,
            label=task.label,
            config=self._config(task).as_dict(),
            seed=task.seed or 0,
            workdir=self.runs.folder(task.digest),
            imports=self._spec.imports,
        )

    def _config(self, task: RunTask) -> TrialConfig:
        """In smaller batches where memory was short before."""
        known = self.runs.read(task.digest)
        return halved(task.config, 0 if known is None else known.halvings)

    def _is_settled_by_earlier(self, task: RunTask) -> bool:
        """Take over a result, or a failure that would come again, of this or another sweep."""
        if self._fresh and task.digest not in self._renewed:
            return False
        folder = self.runs.folder(task.digest)
        state = self.runs.read(task.digest)
        if is_complete(folder, task.config):
            if state is not None and state.state != "done":
                self.runs.end(task.digest, "done")  # its driver died before it could say so
            self._done(task, reused_from=state.sweep if state is not None else "elsewhere")
            return True
        if self._failed_again or state is None or not state.failed_for_good:
            return False
        told = state.failure or {}
        failure = Failure("nan", told.get("message", ""), told.get("log_tail", ""))
        self.progress.fail(task.label, failure.kind, failure.message, again=False)
        self.tracked.failed(task, failure, folder)
        self._settle(task, Outcome("failed", failure))
        return True

    def _done(self, task: RunTask, *, reused_from: str | None) -> None:
        folder = self.runs.folder(task.digest)
        own = measured(folder, UNMERGED)
        self.progress.done(
            task.label, own["metrics"] if own else {}, reused=reused_from is not None
        )
        other = None if reused_from == self.ledger.name else reused_from
        self.tracked.finished(task, folder, reused_from=other)
        self._settle(task, Outcome("done"))

    def _settle(self, task: RunTask, outcome: Outcome) -> None:
        """The run has ended; with the last one of its trial the trial has its value."""
        self.outcomes[task.digest] = outcome
        trial = self._trial(task)
        if trial is None:
            return
        trial.outcomes[task.digest] = outcome
        if trial.told:
            return
        if outcome.state == "done":
            reason = self._pruning.seed_done(trial, task)
            if reason is not None:
                self._prune(trial, reason)
                return
        elif self._pruning.in_order or trial.is_over:  # no seed can give it a value any more
            self.progress.skip(len(trial.waiting))
            trial.waiting.clear()
            self._tell(trial)
            return
        if trial.waiting:
            self._queue.appendleft(trial.waiting.popleft())
        if trial.is_settled:
            self._tell(trial)

    def _tell(self, trial: OpenTrial) -> None:
        """The trial has ended: its values, or why it has none."""
        trial.told = True
        found = end(trial, self.runs, self._spec.goals_at(trial.trial.params))
        if isinstance(found, Failure):
            self.ledger.fail(trial.number, found.kind, found.message)
        else:
            self.ledger.complete(trial.number, found)
        self._ended(trial)

    def _prune(self, trial: OpenTrial, reason: str) -> None:
        """Before anything is stopped: the decision is in the ledger."""
        trial.told = trial.pruned = True
        self.ledger.prune(trial.number, "pruned", reason)
        left = sum(task.digest not in trial.outcomes for task in trial.tasks)
        trial.waiting.clear()
        self.progress.prune(trial.tasks[0].label, reason, runs=left)
        self._ended(trial)

    def _ended(self, trial: OpenTrial) -> None:
        self._asking.ended(trial.trial.point)
        self._pruning.ended(self.ledger.trial(trial.trial.point))
        self._listeners.told()

    def _note_failure(self, task: RunTask, failure: Failure, *, again: bool) -> None:
        self.progress.fail(task.label, failure.kind, failure.message, again=again)
        if not again:
            text = f"{task.label} failed ({failure.kind}): {failure.message}"
            self._listeners.alarm("run_failed", text)
        if again and failure.kind in ("out_of_memory", "preempted"):
            return  # with less to hold, or elsewhere, it may do: nothing is broken yet
        setting = task.role if task.trial is None else f"trial {task.trial}"
        if self.broken is not None:
            return  # a run that was still under way
        self.broken = self._breaker.failed(failure, setting)
        if self.broken is not None:
            self._listeners.alarm("breaker", self.broken)

    def _retry_waiting(self) -> None:
        """Queue what waited for a run that is free now."""
        for _ in range(len(self._waiting)):
            task = self._waiting.popleft()
            if task.digest in self._active or self.runs.is_taken(task.digest):
                self._waiting.append(task)
            else:
                self._queue.append(task)
