"""The engine on Ray Tune: its searcher, scheduler and trainable."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Trainable
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import POLL, Engine, Failure, Handler, Job, Wait
from carft_sweep.sweeps.engines.entry import CORE, log_tail
from carft_sweep.sweeps.engines.ray_cluster import Cluster, own_copy, restored_signals
from carft_sweep.sweeps.engines.resources import (
    Hardware,
    Node,
    RunRequirements,
    hardware_of,
    max_concurrent_runs,
)
from carft_sweep.sweeps.engines.supervisor import (
    ENDS,
    SILENCE,
    Event,
    ListeningClock,
    Supervisor,
    dispatch,
)
from carft_sweep.tracking.store.mlflow_client import quieted

_NODE_LABEL = "ray.io/node-id"
"""The label that Ray gives each node."""
STEP = 2.0
"""Seconds that a step waits for events; an immediate stop may take as long."""


class WarmRun(Trainable):
    """Executes the runs of one of Tune's trials one after another; each step returns some events.

    The step after a report lets the run continue, unless `decide` was called between them; the step
    after the end of a run begins the run that `assign` was given.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Implement `Trainable.setup`. The run begins with its first step."""
        self._supervisor = Supervisor(
            **json.loads(config["supervision"]), place=f"ray:{socket.gethostname()}"
        )
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Implement `Trainable.reset_config`: accept the next run, in the same worker process."""
        self.assign(new_config["job"])
        return True

    def assign(self, job: str) -> None:
        """Take a job, given as JSON, to begin it with the next step."""
        fields = json.loads(job)
        self._job = Job(**fields | {"imports": [*map(own_copy, fields["imports"])]})
        self._begun = False
        self._decision: Decision | None = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Implement `Trainable.default_resource_request`: a place on any node but those named."""
        where = json.loads(config["place"])
        label = {_NODE_LABEL: f"!in({','.join(where['without'])})"}
        selector = [label] if where["without"] else None
        return tune.PlacementGroupFactory([where["bundle"]], bundle_label_selector=selector)

    def step(self) -> dict[str, Any]:
        """Implement `Trainable.step`: return, as JSON, the events of the next moment."""
        node = ray.get_runtime_context().get_node_id()
        return {"events": json.dumps(list(self._events())), "node": node}

    def decide(self, decision: str) -> None:
        """Tell the run that has just reported to continue or to close."""
        self._decision = Decision(decision)

    def cleanup(self) -> None:
        """Implement `Trainable.cleanup`."""
        self._supervisor.close()

    def _events(self) -> Iterator[Event]:
        if not self._begun:
            runs = Path(self._job.workdir).parent
            if not runs.is_dir():  # else results would be written where nobody looks for them
                yield _not_shared(runs)
                return
            self._supervisor.begin(self._job)
            self._begun = True
        elif self._decision is not None:
            self._supervisor.answer(self._decision)
        self._decision = None
        until = time.monotonic() + STEP
        while (timeout := until - time.monotonic()) > 0:
            event = self._supervisor.next(timeout)
            if event is None:
                continue
            yield event
            if event["kind"] == "report":
                self._decision = Decision.CONTINUE
            if event["kind"] == "report" or event["kind"] in ENDS:
                return


def _not_shared(runs: Path) -> Event:
    node = socket.gethostname()
    message = f"{node} does not share the folder {runs} with the driver: it must be shared storage"
    return {"kind": "failed", "failure": vars(Failure("crashed", message, "", node, unfit=True))}


LOOK = 5.0
"""Seconds between two checks of the nodes, and of actors for silence."""
GRACE = 30.0
"""Seconds beyond a worker's that an actor may be silent; half a minute is what Ray itself takes
to call a node dead."""
STOP_GRACE = 10.0
"""Seconds that an actor may be silent when everything is to stop at once."""

_LOST = re.compile(r"actor is dead because ([^.:]*)|actor is temporarily (unavailable[^.]*)")
"""Matches the reason in Ray's message on an actor that is gone."""


@dataclass
class _Active:
    """A job that one of Tune's trials has now."""

    job: Job
    heard: float
    """When its actor last reported, or still waited for a place, by the loop's clock."""
    node: str = ""
    actor: Any = None
    """The handle of its WarmRun, once it has reported: Tune forgets the handle of a lost one."""
    given_up: Failure | None = None
    """Why we have ended its actor."""
    without: frozenset[str] = frozenset()
    """Ray's ids of the nodes on which it must not be placed."""


class Loop:
    """Calls the handler, always in Tune's loop. `error` is what the handler raised.

    A trial of Tune's is a place for runs: it has one after another, so that a sweep of thousands
    makes Tune remember no more of them than run at once.
    """

    def __init__(self, handler: Handler, engine: RayEngine) -> None:
        self.error: Exception | None = None
        self._handler, self._engine = handler, engine
        self._clock = ListeningClock()
        self._active: dict[str, _Active] = {}
        self._slots = 0
        self._names: dict[str, str] = {}
        """The names of all nodes, by Ray's id."""
        self._bad: frozenset[str] = frozenset()
        """Ids of the nodes that are large enough for a run, and on which none may begin."""
        self._good: frozenset[str] = frozenset()
        """Ids of the other nodes that are large enough for a run."""
        self._kept_back: Job | None = None
        """A job that may not run on the node of the worker that asked for one; the next gets it."""
        self._is_over = False
        self._count_again = self._look_again = self._ask_again = 0.0

    def next(self, trial: str) -> dict[str, str] | str | None:
        """Return the next job as the config of Tune's trial of this id; FINISHED after the last,
        None if none is ready."""
        if self._engine.is_stopping or self._is_over:
            return str(Searcher.FINISHED)
        job = self._next_job()
        if job is Wait.NEVER and not self._active:
            return str(Searcher.FINISHED)
        if isinstance(job, Wait):  # a run that fails may be given again
            return None
        without = self._without(job)
        self._active[trial] = _Active(job, self._clock.now, without=without)
        return {
            "job": json.dumps(vars(job)),
            "supervision": self._engine.supervision,
            "place": json.dumps({"bundle": self._engine.bundle, "without": sorted(without)}),
        }

    def _without(self, job: Job) -> frozenset[str]:
        """Return Ray's ids of the nodes on which a job may not be placed: the bad ones, and those
        of `job.avoid` as long as another good node is left."""
        avoided = self._bad.union(id_ for id_, name in self._names.items() if name in job.avoid)
        return self._bad if avoided >= self._good else avoided

    def _next_job(self) -> Job | Wait:
        if self._kept_back is not None:
            kept, self._kept_back = self._kept_back, None
            return kept
        self._count_slots()
        # Where every node is bad, the handler has given up, and returns Wait.NEVER.
        is_full = len(self._active) >= self._slots and (self._good or not self._bad)
        if is_full or time.monotonic() < self._ask_again:
            return Wait.LATER
        with self._keeping_errors():
            job = self._handler.next_job()
        if isinstance(job, Wait):
            self._ask_again = time.monotonic() + POLL
        return job

    def on_result(self, trial: Trial, result: dict[str, Any]) -> str:
        """Pass a step's events on to the handler; return what Tune does with the trial next."""
        active = self._active.get(trial.trial_id)
        if active is None:
            return str(FIFOScheduler.STOP)
        active.heard, active.actor = self._clock.now, _actor(trial)
        active.node = self._names.get(result["node"], result["hostname"])
        with self._keeping_errors():
            if self._engine.is_stopping_now:
                self._end(trial)
                self._handler.stopped(active.job)
                return str(FIFOScheduler.STOP)
            for event in json.loads(result["events"]):
                if event["kind"] == "failed":
                    event["failure"]["node"] = active.node
                elif event["kind"] == "started":
                    event["worker"] = f"ray:{active.node}:{event['worker'].rpartition(':')[2]}"
                decision = dispatch(self._handler, active.job, event)
                if event["kind"] in ENDS:
                    self._end(trial)
                    return self._next_run(trial, active)
                if decision is Decision.STOP or (decision is not None and self._engine.is_stopping):
                    # Before Tune asks for the next step, which is what the actor does next.
                    active.actor.decide.remote(Decision.STOP.value)
        return str(FIFOScheduler.CONTINUE)

    def _next_run(self, trial: Trial, ended: _Active) -> str:
        """Give a worker that ended a run the next job, if any; return what Tune does next."""
        job = Wait.NEVER if self._engine.is_stopping else self._next_job()
        self._is_over = job is Wait.NEVER and not self._active  # and is not asked for once more
        if isinstance(job, Wait):
            return str(FIFOScheduler.STOP)
        without = self._without(job)
        if ended.node in {self._names.get(id_) for id_ in without}:
            self._kept_back = job
            return str(FIFOScheduler.STOP)
        # Before Tune asks for the next step, which is what the actor does next.
        ended.actor.assign.remote(json.dumps(vars(job)))
        self._active[trial.trial_id] = replace(ended, job=job, given_up=None, without=without)
        return str(FIFOScheduler.CONTINUE)

    def release(self) -> None:
        """Report as stopped, at the end, the job that was kept back for another worker."""
        if self._kept_back is not None:
            job, self._kept_back = self._kept_back, None
            self._handler.stopped(job)

    def on_trial_lost(self, trial: Trial) -> None:
        """Report as failed the job of a trial whose actor was lost, or failed itself."""
        active = self._active.get(trial.trial_id)
        if active is None:
            return
        self._end(trial)
        if active.actor is not None:
            ray.kill(active.actor)  # out of reach is not dead
        with self._keeping_errors():
            if self._engine.is_stopping_now:
                self._handler.stopped(active.job)
            else:
                self._handler.failed(active.job, active.given_up or _failure(trial, active))

    def check_actors(self, controller: Any) -> None:
        """When stopping, stop jobs that have not begun; give up silent actors. Called in every
        turn."""
        self._clock.turn()
        if self._engine.is_stopping:
            for trial in [t for t in controller.get_live_trials() if t.status == Trial.PENDING]:
                controller.stop_trial(trial)
                if (active := self._active.get(trial.trial_id)) is not None:
                    self._end(trial)
                    with self._keeping_errors():
                        self._handler.stopped(active.job)
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + LOOK
        for trial in controller.get_live_trials():
            if (active := self._active.get(trial.trial_id)) is not None:
                self._check_actor(controller, trial, active)

    def _check_actor(self, controller: Any, trial: Trial, active: _Active) -> None:
        now = self._clock.now
        if trial.status != Trial.RUNNING:  # it waits for room
            active.heard = now
            is_nowhere = bool(self._good) and active.without >= self._good
            if is_nowhere or not self._bad <= active.without:  # it may land on a bad node
                controller.stop_trial(trial)
                self._end(trial)
                with self._keeping_errors():
                    self._handler.failed(active.job, Failure("preempted", _MOVED))
                return
            with self._keeping_errors():
                self._handler.alive(active.job)
            return
        patience = STOP_GRACE if self._engine.is_stopping_now else self._engine.silence + GRACE
        if active.given_up is None and now - active.heard > patience:
            message = f"nothing was heard of the node for {patience:g} s"
            active.given_up = Failure("timeout", message, log_tail(active.job.workdir), active.node)
            ray.kill(_actor(trial))

    def _count_slots(self) -> None:
        """Count at intervals how many runs fit, since nodes come and go."""
        if time.monotonic() >= self._count_again:
            self._count_again = time.monotonic() + LOOK
            engine, nodes = self._engine, self._engine.cluster.nodes_by_id()
            self._names = {id_: node.name for id_, node in nodes.items()}
            able = {id_: node for id_, node in nodes.items() if node.fits(engine.need)}
            serving = {id_: node for id_, node in able.items() if id_ not in engine.left_out}
            with self._keeping_errors():
                usable = self._handler.usable({node.name for node in serving.values()})
            good = {id_: node for id_, node in serving.items() if node.name in usable}
            self._good, self._bad = frozenset(good), frozenset(able.keys() - good.keys())
            self._slots = max_concurrent_runs(engine.need, [*good.values()], engine.parallel)

    def _end(self, trial: Trial) -> None:
        del self._active[trial.trial_id]
        self._ask_again = 0.0

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        """Store an exception of the handler within the context, which Tune would wrap or ignore.
        While the handler is busy, reports of actors wait in Tune's queue."""
        with self._clock.standing_still():
            try:
                yield
            except Exception as error:
                self.error = error
                raise


class JobSearcher(Searcher):
    """Tune's searcher: the next job of the handler is the next trial."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def suggest(self, trial_id: str) -> Any:
        """Implement `Searcher.suggest`."""
        return self._loop.next(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the scheduler has the result."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger has all state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from its ledger."""


class RunScheduler(FIFOScheduler):
    """Tune's scheduler: passes on what its trials report, and returns what Tune does with them."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's has no types
        self._loop = loop

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Implement `TrialScheduler.on_trial_result`."""
        del tune_controller
        return self._loop.on_result(trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Implement `TrialScheduler.on_trial_error`."""
        del tune_controller
        self._loop.on_trial_lost(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial to run next, or None (see TrialScheduler); called in each turn."""
        self._loop.check_actors(tune_controller)
        live = tune_controller.get_live_trials()
        return next((trial for trial in live if trial.status == Trial.PENDING), None)


_MOVED = "it waited for room where no run may begin any more, and is placed anew"


def _actor(trial: Trial) -> Any:
    """Return the handle of the trial's actor, a WarmRun."""
    return trial.temporary_state.ray_actor


def _failure(trial: Trial, active: _Active) -> Failure:
    """Return the failure of a run whose trial was lost, from Tune's record of the trial."""
    error = Path(trial.error_file or os.devnull)
    text = error.read_text(encoding="utf-8", errors="replace")
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


_NEVER = str(10**9)
_TUNE = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the session's handlers call `stop`
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": _NEVER,
    "TUNE_MAX_PENDING_TRIALS_PG": _NEVER,  # the searcher knows how many fit
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": _NEVER,
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": _NEVER,
    "TUNE_WARN_THRESHOLD_S": _NEVER,
    "RAY_AIR_NEW_OUTPUT": "0",  # the old one can be silenced
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class RayEngine(Engine):
    """As many runs at once as the cluster holds, each in the warm worker process of an actor.

    `need` is what one run takes, `supply` the nodes with what they say of their GPUs (None: as Ray
    lists them), `parallel` the most runs at once (None: any); `silence` and `timeout`, in seconds,
    are as for the local engine. `left_out` are Ray's ids of the nodes that cannot serve.
    """

    def __init__(
        self,
        cluster: Cluster,
        need: RunRequirements,
        entry: str = CORE,
        *,
        supply: Sequence[Node] | None = None,
        parallel: int | None = None,
        silence: float = SILENCE,
        timeout: float | None = None,
        left_out: Collection[str] = (),
    ) -> None:
        limits = {"silence": silence, "timeout": timeout, "threads": int(need.cpus)}
        place = {"devices": None if need.gpus else "", "cwd": str(Path.cwd())}
        self.cluster, self.need, self.parallel, self.silence = cluster, need, parallel, silence
        self.left_out = frozenset(left_out)
        self.supervision = json.dumps({"entry": entry, **limits, **place})
        """The options of each Supervisor."""
        self._hardware = hardware_of(need, supply or [*cluster.nodes_by_id().values()])

    @property
    def hardware(self) -> Hardware:
        """Implement `Engine.hardware`."""
        return self._hardware

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray is asked to set aside for each run, on one node."""
        return {"CPU": self.need.cpus, "GPU": self.need.gpus, **self.need.custom}

    def run(self, handler: Handler) -> None:
        """Implement `Engine.run`."""
        loop = Loop(handler, self)
        # Tune prints nothing: the handler shows what the user must know. And Ray prints to stdout
        # what it thinks of nodes that went, whatever `log_to_driver` says.
        with (
            quieted("ray", logging.CRITICAL, _TUNE),
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
            restored_signals(),
        ):
            try:
                self._tune(loop)
            except Exception:
                if loop.error is None:
                    raise
        if loop.error is not None:  # as the handler raised it: Tune wraps it, or goes on
            raise loop.error
        loop.release()

    def close(self) -> None:
        """Implement `Engine.close`."""
        self.cluster.close()

    def _tune(self, loop: Loop) -> None:
        tune.run(
            WarmRun,
            name=uuid.uuid4().hex,
            num_samples=-1,
            search_alg=JobSearcher(loop),
            scheduler=RunScheduler(loop),
            reuse_actors=True,
            max_failures=0,  # it cannot tell one failure from another
            raise_on_failed_trial=False,
            storage_path=str(self.cluster.scratch),
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            verbose=0,
        )


def _name(trial: Trial) -> str:
    name: str = trial.trial_id
    return name
