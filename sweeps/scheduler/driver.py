"""The driver of a sweep: which run is next, and what follows from how it ended."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.runs.evaluations import is_complete
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import Failure, Job, Wait
from carft_sweep.sweeps.ledger.claim import Claim, Limits
from carft_sweep.sweeps.ledger.ledger import TRIAL_RUNS, Ledger, Trial
from carft_sweep.sweeps.ledger.runs import RunState, RunStore, measured
from carft_sweep.sweeps.ledger.status import BAD_NODES, has_work_left
from carft_sweep.sweeps.plan.planner import PlannedRun, Planner, run_label, setting_record
from carft_sweep.sweeps.scheduler.active_trial import ActiveTrial, trial_values
from carft_sweep.sweeps.scheduler.final_runs import FinalRuns
from carft_sweep.sweeps.scheduler.progress import Progress
from carft_sweep.sweeps.scheduler.proposer import TrialProposer
from carft_sweep.sweeps.scheduler.pruning import PruningController
from carft_sweep.sweeps.scheduler.retries import CircuitBreaker, GiveUp, Retry, RetryPolicy, halved
from carft_sweep.sweeps.scheduler.time_budget import TimeBudget
from carft_sweep.tracking.comparison.runs import UNMERGED, setting

logger = logging.getLogger(__name__)


class SweepDriver:
    """The handler of an engine: returns jobs in order, zero-shot, baselines, trials, final runs. A
    search that learns from results proposes only when there is room for a run, so that with one run
    at a time its proposals are the same in each execution."""

    def __init__(
        self,
        planner: Planner,
        ledger: Ledger,
        runs: RunStore,
        *,
        claim: Claim,
        progress: Progress,
        note: Callable[[str], None],
        failed_again: bool = False,
    ) -> None:
        """Prepare to drive a sweep. `note` is called with the digest of a run with new records on
        disk, and with "" where only the ledger has changed. With `failed_again` runs that became
        NaN are tried again too."""
        self.planner, self.ledger, self.runs, self.progress = planner, ledger, runs, progress
        self.outcomes: dict[str, Failure | None] = {}
        """By digest of each run that has ended: why it failed, None where it is done."""
        self.broken: str | None = None
        """Why the sweep was given up."""
        self._spec = planner.spec
        self._claim, self._note = claim, note
        self._proposer = TrialProposer(planner, ledger, runs, failed_again=failed_again)
        self._final_runs = FinalRuns(planner, ledger, runs, progress)
        self._pruning = PruningController(planner.spec, ledger, runs)
        self._retries = RetryPolicy(planner.spec.retries)
        self._breaker = CircuitBreaker(planner.spec.breaker)
        self.budget = TimeBudget(ledger, planner.spec.time_budget)
        self._failed_again = failed_again
        self._limits = Limits()
        self._queue: deque[PlannedRun] = deque()
        self._waiting: deque[PlannedRun] = deque()
        self._active: dict[str, PlannedRun] = {}
        self._best: float | None = None
        self._open: dict[int, ActiveTrial] = {}
        """By number the trials with runs that are queued, under way, or still to come."""

    def begin(self) -> None:
        """Plan the baselines, and record what a comparison needs to know about them."""
        settings = self.planner.baselines()
        self.ledger.remember("baselines", [setting_record(planned) for planned in settings])
        self.ledger.remember("trial_count", self._spec.trial_count)
        if self.ledger.recall(BAD_NODES):
            self.ledger.remember(BAD_NODES, {})  # these nodes are tried again
        self._queue.extend(run for planned in settings for run in planned)
        of_trials = sum(map(self._spec.expected_runs, range(self._spec.trial_count)))
        self.ledger.remember(TRIAL_RUNS, of_trials)
        self.progress.begin(len(self._queue) + of_trials + self._final_runs.begin())
        for trial in self.ledger.trials():
            self._show_best(trial)
        self._note("")

    def next_job(self) -> Job | Wait:
        """Implement `Handler.next_job`."""
        self._claim.renew()
        while True:
            if self.broken is not None or self.budget.is_used_up:
                return Wait.NEVER
            if self._is_limited():
                return Wait.LATER
            self._retry_waiting()
            if not self._queue and not self._queue_trial():
                if self._active or self._waiting:
                    return Wait.LATER
                self._queue.extend(self._final_runs.plan())
                if not self._queue:
                    return Wait.NEVER
            if self._queue:
                job = self._job(self._queue.popleft())
                if job is not None:
                    return job

    def usable(self, nodes: Collection[str]) -> Collection[str]:
        """Implement `Handler.usable`."""
        return self._breaker.usable(nodes)

    def _is_limited(self) -> bool:
        """Return whether no run may begin now, by what was requested of the running sweep."""
        limits = self._claim.limits
        if limits != self._limits:
            self._limits = limits
            self.progress.note(str(limits))
        return limits.is_paused or len(self._active) >= (limits.parallel or math.inf)

    @property
    def has_work_left(self) -> bool:
        """Return whether the same command would have runs to do."""
        return self._final_runs.are_due or has_work_left(self.ledger, self.runs)

    def started(self, job: Job, worker: str) -> None:
        """Record that a worker has begun a run, and show it."""
        self._claim.renew()
        self.runs.begin(job.digest, worker)
        self.progress.started(job)
        self._note(job.digest)

    def alive(self, job: Job) -> None:
        """Renew the claim on the sweep and count the time that it has used."""
        del job
        self._claim.renew()
        self.budget.count()

    def reported(self, job: Job, report: Mapping[str, Any]) -> Decision:
        """Record the report of an epoch; return whether early termination lets the run continue."""
        self._claim.renew()
        run = self._active[job.digest]
        self.progress.epoch(job, report)
        self._note(job.digest)
        trial = self._trial(run)
        if trial is None:
            return Decision.CONTINUE
        reason = None if trial.recorded else self._pruning.reported(trial, run, report)
        if reason is not None:
            self._prune(trial, reason)
        return Decision.STOP if trial.is_over else Decision.CONTINUE

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        """Record that a run is trained and evaluated, and show its warnings."""
        self._claim.renew()
        run = self._active.pop(job.digest)
        state = self.runs.release(job.digest, "done")
        self._breaker.succeeded("" if state is None else state.worker)
        for warning in result.get("warnings", ()):
            self.progress.note(f"{run.label}: {warning}")
        self._done(run, reused=False)

    def stopped(self, job: Job) -> None:
        """Record a run that was closed early: pruned, given up with its trial, or interrupted."""
        self._claim.renew()
        run = self._active.pop(job.digest)
        self.runs.release(job.digest, "stopped")
        self._note(job.digest)
        trial = self._trial(run)
        if trial is not None and trial.pruned:
            self.progress.end(run)
            return
        if trial is not None and trial.is_over:
            self.progress.stopped(run, "another seed of its trial became NaN")
            self.progress.skip(1)
        else:
            self.progress.stopped(run)

    def failed(self, job: Job, failure: Failure) -> None:
        """Queue a failed run again, or record its failure for good, as `retries` decides."""
        self._claim.renew()
        run = self._active[job.digest]
        trial = self._trial(run)
        if trial is not None and trial.pruned:  # it failed before its stop reached it
            self.stopped(job)
            return
        del self._active[job.digest]
        decision: Retry | GiveUp = GiveUp("its trial has ended")
        if trial is None or not trial.is_over:
            decision = self._retries.decide(job.digest, failure, trial_config(job.config))
        if isinstance(decision, Retry):
            # Not failed: whoever drives the sweep next tries it again too.
            self.runs.release(job.digest, "stopped", halve=decision.halve)
            self._note_failure(run, failure, again=True)
            self._queue.appendleft(run)
            return
        logger.info("%s is not tried again: %s", run.label, decision.reason)
        self.runs.release(job.digest, "failed", failure.as_dict())
        self._note_failure(run, failure, again=False)
        if self.runs.restore_backup(job.digest):
            self.runs.release(job.digest, "done")
            self.progress.note(f"{run.label}: the earlier result of this run was kept")
        self._note(job.digest)
        self._settle(run, failure)

    def abandon(self) -> None:
        """Release all jobs as stopped after the engine failed; a later execution resumes them."""
        for run in self._active.values():
            self.runs.release(run.digest, "stopped")
        self._active.clear()

    def close(self) -> None:
        """Record the time that the sweep has used."""
        self._claim.renew()
        self.budget.count(now=True)

    def _trial(self, run: PlannedRun) -> ActiveTrial | None:
        return None if run.trial is None else self._open[run.trial]

    def _queue_trial(self) -> bool:
        """Queue the runs of the next trial; return False if no trial is left, or none can be
        proposed yet."""
        if self._spec.is_adaptive and self._waiting and not self._active:
            return False  # another sweep trains what the next proposal depends on
        trial = self._proposer.next_trial()
        if trial is None:
            return False
        self._open[trial.number] = trial
        planned = list(trial.planned)
        if planned[0].is_numbered:
            self.progress.note(f"{planned[0].setting_label}: {setting(planned[0].params)}")
        self.progress.skip(self._spec.expected_runs(trial.trial.point) - len(planned))
        if trial.trial.state == "pruned":
            trial.pruned = True
            self.progress.skip(len(planned))
            for run in planned:
                self._stop_if_left(self._read(run))
            return True
        if self._pruning.in_order and not trial.recorded:
            trial.pending_seeds.extend(planned[1:])
            del planned[1:]
        self._queue.extend(planned)
        return True

    def _job(self, run: PlannedRun) -> Job | None:
        """Return the job that a run still needs; None if it has ended or is claimed elsewhere."""
        trial = self._trial(run)
        if run.digest in self.outcomes:
            if trial is None or not trial.pruned:  # a pruned trial's runs are subtracted already
                self.progress.skip(1)
            self._settle(run, self.outcomes[run.digest])
            return None
        state = self._read(run)
        if self._is_running(run, state):
            logger.info("%s waits for whoever runs it now", run.label)
            self._waiting.append(run)
            return None
        if self._is_settled_by_earlier(run, state):
            return None
        if trial is not None and trial.is_over:
            if not trial.pruned:
                self.progress.skip(1)
            self._stop_if_left(state)
            self._note(run.digest)
            return None
        is_outdated = self._is_outdated(state)
        if trial is not None and not trial.recorded and not is_outdated:
            reason = self._pruning.catch_up(trial, run)
            if reason is not None:
                self._prune(trial, reason)
                return None
        state = self.runs.acquire(run.digest, run.label, self.ledger.name)
        if state is None:
            self._waiting.append(run)
            return None
        if is_outdated:
            self.runs.back_up(run.digest)
        self._active[run.digest] = run
        return Job(
            digest=run.digest,
            label=run.label,
            # In smaller batches where memory was short before.
            config=halved(run.config, state.halvings).as_dict(),
            seed=run.seed or 0,
            workdir=str(self.runs.folder(run.digest)),
            imports=self._spec.imports,
            avoid=self._retries.nodes_to_avoid(run.digest),
        )

    def _read(self, run: PlannedRun) -> RunState | None:
        """Return the state of a run; its damaged files are set aside, and made again."""
        if not self.runs.is_live(run.digest):
            for reason in self.runs.set_damaged_aside(run.digest):
                self.progress.note(f"{run.label}: {reason}; it is set aside and made again")
        return self.runs.read(run.digest)

    def _is_outdated(self, state: RunState | None) -> bool:
        """Return whether `--fresh` makes a run train again: it last ran before the generation."""
        lease = None if state is None else state.lease
        since = lease.since if lease else (state and state.ended) or 0.0
        return self.ledger.is_fresh and since < self.ledger.began

    def _stop_if_left(self, state: RunState | None) -> None:
        """Mark as stopped a run that will not be resumed and that a dead driver left running."""
        if state is not None and state.state == "running":
            self.runs.release(state.digest, "stopped")

    def _is_running(self, run: PlannedRun, state: RunState | None) -> bool:
        """Return whether this or another driver works on a run now."""
        return run.digest in self._active or (state is not None and state.is_live)

    def _is_settled_by_earlier(self, run: PlannedRun, state: RunState | None) -> bool:
        """Reuse a run's earlier result, or failure that would repeat; return whether one exists."""
        if self._is_outdated(state):
            return False
        if is_complete(self.runs.folder(run.digest), run.config):
            if state is not None and state.state != "done":
                self.runs.release(run.digest, "done")  # its driver died before it could say so
            self._done(run, reused=True)
            return True
        if self._failed_again or state is None or not state.is_permanent_failure:
            return False
        earlier = state.failure or {}
        failure = Failure("nan", earlier.get("message", ""), earlier.get("log_tail", ""))
        self.progress.fail(run, failure.kind, failure.message, again=False)
        self._note(run.digest)
        self._settle(run, failure)
        return True

    def _done(self, run: PlannedRun, *, reused: bool) -> None:
        own = measured(self.runs.folder(run.digest), UNMERGED)
        self.progress.done(run, own["metrics"] if own else {}, reused=reused)
        self._note(run.digest)
        self._settle(run, None)

    def _settle(self, run: PlannedRun, failure: Failure | None) -> None:
        """Count an ended run; after the last run of a trial, record the trial's value."""
        self.outcomes[run.digest] = failure
        trial = self._trial(run)
        if trial is None:
            return
        trial.outcomes[run.digest] = failure
        if trial.recorded:
            return
        if failure is None:
            reason = self._pruning.seed_done(trial, run)
            if reason is not None:
                self._prune(trial, reason)
                return
        elif self._pruning.in_order or trial.is_over:  # no seed can give it a value any more
            self.progress.skip(len(trial.pending_seeds))
            trial.pending_seeds.clear()
            self._end_trial(trial)
            return
        if trial.pending_seeds:
            self._queue.appendleft(trial.pending_seeds.popleft())
        if trial.is_settled:
            self._end_trial(trial)

    def _end_trial(self, trial: ActiveTrial) -> None:
        """Record the values of a trial that has ended, or why it has none."""
        trial.recorded = True
        values = trial_values(trial, self.runs, self._spec.goals_at(trial.trial.params))
        if isinstance(values, Failure):
            ended = self.ledger.fail(trial.number, values.kind, values.message)
        else:
            ended = self.ledger.complete(trial.number, values)
        self._on_trial_end(ended)

    def _prune(self, trial: ActiveTrial, reason: str) -> None:
        """Record the pruning in the ledger before any run is stopped."""
        trial.recorded = trial.pruned = True
        pruned = self.ledger.prune(trial.number, "pruned", reason)
        runs = sum(run.digest not in trial.outcomes for run in trial.planned)
        trial.pending_seeds.clear()
        self.progress.prune(trial.planned[0].label, reason, runs=runs)
        for run in trial.planned:
            self._note(run.digest)
        self._on_trial_end(pruned)

    def _on_trial_end(self, trial: Trial) -> None:
        self._proposer.on_trial_end(trial)
        self._pruning.on_trial_end(trial)
        self._show_best(trial)
        self._note("")

    def _show_best(self, trial: Trial) -> None:
        """Show a trial that is better than all earlier trials, unless there are several tasks,
        whose values do not compare."""
        metric = self._spec.metric
        if trial.value is None or self._spec.tasks is not None:
            return
        sign = 1 if metric.goal == "maximize" else -1
        if self._best is None or sign * trial.value > sign * self._best:
            self._best = trial.value
            setting = run_label(trial.algorithm, trial.params, trial.number)
            self.progress.best(setting, metric.name, trial.value)

    def _note_failure(self, run: PlannedRun, failure: Failure, *, again: bool) -> None:
        self.progress.fail(run, failure.kind, failure.message, again=again)
        if again and failure.kind in ("out_of_memory", "preempted"):
            return  # in less memory, or on another node, it may succeed
        setting = run.role if run.trial is None else f"trial {run.trial}"
        if self.broken is not None:
            return  # a run that was still under way
        self.broken = self._breaker.failed(failure, setting)
        bad, before = self._breaker.bad_nodes(), self.ledger.recall(BAD_NODES, {})
        if bad != before:
            self.ledger.remember(BAD_NODES, bad)
        for node in bad.keys() - before.keys():
            self.progress.note(
                f"no more runs begin on {node}, since they fail there ({bad[node]}); the others go "
                "on, and what failed there alone is tried elsewhere"
            )
        for node in before.keys() - bad.keys():
            self.progress.note(f"runs begin on {node} again: what failed there fails elsewhere too")

    def _retry_waiting(self) -> None:
        """Queue the waiting runs that are free now."""
        for _ in range(len(self._waiting)):
            run = self._waiting.popleft()
            if self._is_running(run, self._read(run)):
                self._waiting.append(run)
            else:
                self._queue.append(run)
