"""The sweep's side of the engine: gives out runs, takes results, and tells ledger and tracker."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from carft_core.result import is_complete
from sweeps.engines.base import Decision, Failure, Job, Wait
from sweeps.ledger import Ledger, Trial
from sweeps.plan import Planner, Task, digests, merge_labels
from sweeps.progress import Progress
from sweeps.proposals import proposal, propose
from sweeps.records import measured
from sweeps.runs import Runs
from sweeps.tracked import OWN, TrackedSweep

RETRIED = frozenset({"crashed", "timeout", "preempted"})
"""Failures that may not happen again; the others would."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended in this sweep."""

    state: Literal["done", "failed"]
    failure: Failure | None = None


@dataclass
class OpenTrial:
    """A trial whose runs are being collected; `told` once its value is in the ledger."""

    trial: Trial
    digests: Sequence[str]
    told: bool
    outcomes: dict[str, Outcome] = field(default_factory=dict)


class Driver:
    """A Handler. Runs are given out in order: zero-shot, baselines, then trials with their seeds.

    A trial is asked when every earlier one has its value, so that the same sweep asks the same.
    """

    def __init__(
        self,
        planner: Planner,
        ledger: Ledger,
        runs: Runs,
        *,
        cache: Path,
        tracked: TrackedSweep,
        progress: Progress,
        carried: Sequence[Mapping[str, Any]] = (),
        fresh: bool = False,
        alive: Callable[[], None] = lambda: None,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.planner, self.ledger, self.runs = planner, ledger, runs
        self.tracked, self.progress = tracked, progress
        self.outcomes: dict[str, Outcome] = {}
        self.interrupted = False
        self._cache = cache
        self._carried = carried
        self._fresh = fresh
        self._alive, self._told = alive, told
        self._queue: deque[Task] = deque()
        self._waiting: deque[Task] = deque()
        self._active: dict[str, Task] = {}
        self._tries: dict[str, int] = {}
        self._renewed: set[str] = set()
        self._open: dict[int, OpenTrial] = {}
        self._points = self._asked()

    def begin(self) -> None:
        """Plan the baselines, and keep in the ledger what a comparison needs to know of them."""
        spec = self.planner.spec
        settings = self.planner.baselines()
        self.ledger.remember(
            "baselines",
            [
                {
                    "algorithm": tasks[0].algorithm,
                    "params": dict(tasks[0].params),
                    "runs": digests(tasks),
                    "merges": merge_labels(tasks[0].config),
                }
                for tasks in settings
            ],
        )
        self.ledger.remember("trial_count", spec.trial_count)
        self._queue.extend(task for tasks in settings for task in tasks)
        self.progress.begin(len(self._queue) + spec.trial_count * len(spec.seeds))

    def next_job(self) -> Job | Wait:
        """See Handler."""
        while True:
            self._retry_waiting()
            if not self._queue and not self._ask():
                return Wait.LATER if self._active or self._waiting else Wait.NEVER
            if self._queue:
                job = self._job(self._queue.popleft())
                if job is not None:
                    return job

    def started(self, job: Job, worker: str) -> None:
        """See Handler."""
        known = self.runs.read(job.digest)
        self.progress.started(job.label)
        self.tracked.started(
            self._active[job.digest], attempt=known.attempts if known else 1, worker=worker
        )

    def alive(self, job: Job) -> None:
        """See Handler."""
        self.runs.renew(job.digest)
        self._alive()

    def reported(self, job: Job, report: Mapping[str, Any]) -> Decision:
        """See Handler."""
        self.progress.epoch(job.label, report)
        self.tracked.reported(self._active[job.digest], report)
        return Decision.CONTINUE

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        """See Handler."""
        task = self._active.pop(job.digest)
        self.runs.end(job.digest, "done")
        self.runs.settle(job.digest)
        for warning in result.get("warnings", ()):
            self.progress.note(f"{task.label}: {warning}")
        self._done(task, reused_from=None)

    def stopped(self, job: Job) -> None:
        """See Handler."""
        task = self._active.pop(job.digest)
        self.interrupted = True
        self.runs.end(job.digest, "stopped")
        self.progress.stopped(task.label)
        self.tracked.stopped(task)

    def failed(self, job: Job, failure: Failure) -> bool:
        """See Handler."""
        task = self._active.pop(job.digest)
        told = {"kind": failure.kind, "message": failure.message, "log_tail": failure.log_tail}
        self.runs.end(job.digest, "failed", told)
        tries = self._tries[job.digest] = self._tries.get(job.digest, 0) + 1
        again = failure.kind in RETRIED and tries <= self.planner.spec.retries
        self.progress.fail(task.label, failure.kind, failure.message, again=again)
        if again:
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

    def _asked(self) -> Iterator[tuple[int, Trial | None]]:
        """Every point of the sweep, with the trial that is there already."""
        known = {trial.point: trial for trial in self.ledger.trials()}
        for point in range(self.planner.spec.trial_count):
            yield point, known.get(point)

    def _ask(self) -> bool:
        """Queue the runs of the next trial; False when there is none, or not yet."""
        if any(not trial.told for trial in self._open.values()):
            return False
        point, trial = next(self._points, (None, None))
        if point is None:
            return False
        if trial is None:
            trial = self._propose(point, None)
        elif trial.state == "failed" and (trial.reason or {}).get("kind") != "nan":
            # What broke it may be mended by now; a finished trial cannot be told again.
            trial = self._propose(point, trial.params)
        tasks = self.planner.trial(trial.params, trial.number)
        if tasks[0].config.algorithm.trains:
            # What the file asks for now; a finished trial keeps what it was asked with.
            self.ledger.remember("merges", merge_labels(tasks[0].config))
        known = OpenTrial(trial, [task.digest for task in tasks], told=trial.state != "running")
        self._open[trial.number] = known
        self._queue.extend(tasks)
        return True

    def _propose(self, point: int, params: Mapping[str, Any] | None) -> Trial:
        spec = self.planner.spec
        if params is None and point < len(self._carried):
            params = self._carried[point]
        found = propose(spec, self.ledger, point) if params is None else proposal(spec, params)
        tasks = self.planner.trial(found.params)
        return self.ledger.propose(
            point,
            stored=found.stored,
            distributions=found.distributions,
            attributes={
                "params": dict(found.params),
                "algorithm": tasks[0].algorithm,
                "runs": digests(tasks),
                "merges": merge_labels(tasks[0].config),
            },
        )

    def _job(self, task: Task) -> Job | None:
        """The job that a run still needs; None when it is settled, or waits for somebody."""
        known = self.outcomes.get(task.digest)
        if known is not None:
            self._settle(task, known)
            return None
        if task.digest in self._active or self.runs.is_taken(task.digest):
            self._waiting.append(task)
            return None
        if self._is_settled_by_earlier(task):
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
            config=task.config.as_dict(),
            seed=task.seed or 0,
            workdir=self.runs.folder(task.digest),
            cache=self._cache,
        )

    def _is_settled_by_earlier(self, task: Task) -> bool:
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
        if state is not None and state.failed_for_good and state.failure is not None:
            failure = Failure("nan", state.failure["message"], state.failure["log_tail"])
            self.progress.fail(task.label, failure.kind, failure.message, again=False)
            self.tracked.failed(task, failure, folder)
            self._settle(task, Outcome("failed", failure))
            return True
        return False

    def _done(self, task: Task, *, reused_from: str | None) -> None:
        folder = self.runs.folder(task.digest)
        own = measured(folder, OWN)
        self.progress.done(
            task.label, own["metrics"] if own else {}, reused=reused_from is not None
        )
        other = None if reused_from == self.ledger.name else reused_from
        self.tracked.finished(task, folder, reused_from=other)
        self._settle(task, Outcome("done"))

    def _settle(self, task: Task, outcome: Outcome) -> None:
        """The run has ended; with the last one of its trial the trial has its value."""
        self.outcomes[task.digest] = outcome
        trial = None if task.trial is None else self._open[task.trial]
        if trial is None:
            return
        trial.outcomes[task.digest] = outcome
        if trial.told or set(trial.outcomes) < set(trial.digests):
            return
        trial.told = True
        broken = [o.failure for o in trial.outcomes.values() if o.failure is not None]
        value = math.nan if broken else self._value(trial)
        if broken:
            self.ledger.fail(trial.trial.number, broken[0].kind, broken[0].message)
        elif math.isfinite(value):
            self.ledger.complete(trial.trial.number, value)
        else:
            name = self.planner.spec.metric.name
            self.ledger.fail(trial.trial.number, "nan", f"{name} is not there or not finite")
        self._told()

    def _value(self, trial: OpenTrial) -> float:
        """The mean of the sweep's metric over the seeds."""
        metric = self.planner.spec.metric
        values = []
        for digest in trial.digests:
            found = measured(self.runs.folder(digest), metric.merge or OWN)
            values.append(float((found or {"metrics": {}})["metrics"].get(metric.name, math.nan)))
        return sum(values) / len(values)

    def _retry_waiting(self) -> None:
        """Queue what waited for a run that is free now."""
        for _ in range(len(self._waiting)):
            task = self._waiting.popleft()
            if task.digest in self._active or self.runs.is_taken(task.digest):
                self._waiting.append(task)
            else:
                self._queue.append(task)
