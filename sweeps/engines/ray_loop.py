"""A handler in Ray Tune's loop: its searcher asks for jobs, its scheduler tells of events."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from sweeps.engines.base import POLL, Decision, Failure, Handler, Job, Wait
from sweeps.engines.ray_cluster import Cluster
from sweeps.engines.supervision import ENDS, plain, tell
from sweeps.engines.training import log_tail
from sweeps.resources import Need, slots

LOOK = 5.0
"""Seconds between two looks at the nodes, and at actors that tell nothing."""
GRACE = 30.0
"""Seconds beyond a worker's that an actor may be silent; half a minute is what Ray itself takes
to call a node dead."""
STOP_GRACE = 10.0
"""The same when everything is to stop at once."""

_LOST = re.compile(r"actor is dead because ([^.:]*)|actor is temporarily (unavailable[^.]*)")
"""In what Ray says of an actor that is gone."""


@dataclass
class Stop:
    """What was asked: plain flags, since a signal handler must not wait for a lock."""

    asked: bool = False
    now: bool = False


@dataclass(frozen=True)
class Place:
    """Where runs go, and how each is supervised there."""

    cluster: Cluster
    need: Need
    parallel: int | None
    silence: float
    """Seconds that a worker may show no life."""
    supervision: str
    """The options of the Supervisor, as JSON."""


@dataclass
class _Active:
    """A job that is one of Tune's trials now."""

    job: Job
    heard: float
    """When its actor last told anything, or was not yet to."""
    node: str = ""
    actor: Any = None
    """The handle of a WarmRun, once it has told anything: Tune forgets it when it is lost."""
    given_up: Failure | None = None
    """Why we have ended its actor."""


class Loop:
    """Calls the handler, always in Tune's loop. `error` is what the handler raised."""

    def __init__(self, handler: Handler, place: Place, stop: Stop) -> None:
        self.error: Exception | None = None
        self._handler = handler
        self._place = place
        self._stop = stop
        self._active: dict[str, _Active] = {}
        self._slots = 0
        self._count_again = self._look_again = self._ask_again = 0.0

    def next(self, trial: str) -> dict[str, str] | str | None:
        """The next job as a trial's config; None for not now."""
        if self._stop.asked:
            return str(Searcher.FINISHED)
        self._count_slots()
        if len(self._active) >= self._slots or time.monotonic() < self._ask_again:
            return None
        with self._kept():
            job = self._handler.next_job()
        if job is Wait.NEVER and not self._active:
            return str(Searcher.FINISHED)
        if isinstance(job, Wait):  # a run that fails may be given again
            self._ask_again = time.monotonic() + POLL
            return None
        self._active[trial] = _Active(job, time.monotonic())
        return {"job": json.dumps(plain(job)), "supervision": self._place.supervision}

    def heard(self, trial: Trial, result: dict[str, Any]) -> str:
        """Tell the handler of a step's events; what Tune is to do with the trial."""
        active = self._active.get(trial.trial_id)
        if active is None:
            return str(FIFOScheduler.STOP)
        active.heard, active.node, active.actor = (
            time.monotonic(),
            result["hostname"],
            _actor(trial),
        )
        with self._kept():
            if self._stop.now:
                self._end(trial)
                self._handler.stopped(active.job)
                return str(FIFOScheduler.STOP)
            for event in json.loads(result["events"]):
                decision = tell(self._handler, active.job, event)
                if event["kind"] in ENDS:
                    self._end(trial)
                    return str(FIFOScheduler.STOP)
                if decision is Decision.STOP or (decision is not None and self._stop.asked):
                    # Before Tune asks for the next step, which is what the actor does next.
                    active.actor.decide.remote(Decision.STOP.value)
        return str(FIFOScheduler.CONTINUE)

    def lost(self, trial: Trial) -> None:
        """The actor of a trial is gone, or has failed itself."""
        active = self._active.get(trial.trial_id)
        if active is None:
            return
        self._end(trial)
        if active.actor is not None:
            ray.kill(active.actor)  # out of reach is not dead
        with self._kept():
            if self._stop.now:
                self._handler.stopped(active.job)
            else:
                failure = active.given_up or _failure(trial, active)
                self._handler.failed(active.job, failure)

    def look(self, controller: Any) -> None:
        """Stop what has not begun when it is to stop, and give up actors that tell nothing."""
        if self._stop.asked:
            for trial in [t for t in controller.get_live_trials() if t.status == Trial.PENDING]:
                controller.stop_trial(trial)
                active = self._active.get(trial.trial_id)
                if active is not None:
                    self._end(trial)
                    with self._kept():
                        self._handler.stopped(active.job)
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + LOOK
        for trial in controller.get_live_trials():
            active = self._active.get(trial.trial_id)
            if active is not None:
                self._look_at(trial, active)

    def _look_at(self, trial: Trial, active: _Active) -> None:
        now = time.monotonic()
        if trial.status != Trial.RUNNING:  # it waits for room: its lease is to live
            active.heard = now
            with self._kept():
                self._handler.alive(active.job)
            return
        patience = STOP_GRACE if self._stop.now else self._place.silence + GRACE
        if active.given_up is None and now - active.heard > patience:
            message = f"nothing was heard of the node for {patience:g} s"
            active.given_up = Failure("timeout", message, log_tail(active.job.workdir), active.node)
            ray.kill(_actor(trial))

    def _count_slots(self) -> None:
        """Count now and then how many runs fit: nodes come and go."""
        if time.monotonic() >= self._count_again:
            self._count_again = time.monotonic() + LOOK
            place = self._place
            self._slots = slots(place.need, place.cluster.nodes(), place.parallel)

    def _end(self, trial: Trial) -> None:
        del self._active[trial.trial_id]
        self._ask_again = 0.0

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep what the handler raises: Tune wraps it, or goes on."""
        try:
            yield
        except Exception as error:
            self.error = error
            raise


class Asking(Searcher):
    """Tune's way to ask for the next trial."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def suggest(self, trial_id: str) -> Any:
        """See Searcher."""
        return self._loop.next(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The scheduler was told."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger knows."""

    def restore(self, checkpoint_path: str) -> None:
        """Never: a sweep goes on from its ledger."""


class Telling(FIFOScheduler):
    """Tune's way to tell of a trial and to be told what it does."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's has no types
        self._loop = loop

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See TrialScheduler."""
        del tune_controller
        return self._loop.heard(trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """See TrialScheduler."""
        del tune_controller
        self._loop.lost(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """See TrialScheduler; asked in every turn of the loop."""
        self._loop.look(tune_controller)
        live = tune_controller.get_live_trials()
        return next((trial for trial in live if trial.status == Trial.PENDING), None)


def _actor(trial: Trial) -> Any:
    """The handle of the actor that has the trial, a WarmRun."""
    return trial.temporary_state.ray_actor


def _failure(trial: Trial, active: _Active) -> Failure:
    """What Tune has written of why it lost the trial, as a failure of the run."""
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    tail = log_tail(active.job.workdir)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "low on memory" in text:
        message = "its node ran low on memory, and Ray ended the run"
        return Failure("out_of_memory", message, tail, active.node)
    if "ray::" in text or "creation task" in text:  # a traceback of our own actor
        return Failure("crashed", lines[-1], text, active.node)
    reason = _LOST.search(text)
    message = "its actor is gone" if reason is None else " ".join(filter(None, reason.groups()))
    return Failure("preempted", f"the run was lost: {message}", tail, active.node)
