"""The seam between a sweep and the place where its runs execute.

The engine drives and the handler decides, since Ray Tune owns its loop: its searcher requests the
next job, its scheduler whether a run continues. The local engine has the same shape.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from carft_sweep.sweeps.engines.resources import Hardware


logger = logging.getLogger(__name__)

POLL = 0.25
"""Seconds between two looks at the clock and at whether to stop."""

FailureClass = Literal["nan", "out_of_memory", "data", "preempted", "crashed", "timeout"]


@dataclass(frozen=True)
class Job:
    """One run to be executed, or what else a worker does: all it needs, as plain data."""

    digest: str
    label: str
    """For display: `trial 3, seed 1`."""
    config: Mapping[str, Any]
    """`TrialConfig.as_dict()`, with nothing in it left to the worker to resolve."""
    seed: int
    workdir: str
    imports: Sequence[str] = ()
    """Modules of the user's own to import first: names, or paths of files."""
    entry: str | None = None
    """What executes it, as `module:function`; None: the engine's own, which trains."""


@dataclass(frozen=True)
class Failure:
    """Why a run did not succeed."""

    kind: FailureClass
    message: str
    """One line."""
    log_tail: str = ""
    node: str = ""
    """The host on which it happened, where that is known."""
    narrowed: bool = False
    """Whether fewer runs are side by side from now on, since memory was too small for so many."""

    def as_dict(self) -> dict[str, str]:
        """Build what is kept of it with the run."""
        return {"kind": self.kind, "message": self.message, "log_tail": self.log_tail}


class Decision(Enum):
    """What becomes of a run that has reported an epoch."""

    CONTINUE = "continue"
    STOP = "stop"


class Wait(Enum):
    """What `next_job` returns when there is no job just now."""

    LATER = "later"
    """Every remaining job waits for a running one."""
    NEVER = "never"
    """Nothing is left to be started."""


class Handler(Protocol):
    """The sweep's side. An engine calls it from one thread only."""

    def next_job(self) -> Job | Wait:
        """The next run to start. Called only when there is room for it, since a search proposes
        better the more it knows."""

    def started(self, job: Job, worker: str) -> None:
        """A worker has begun with the job."""

    def alive(self, job: Job) -> None:
        """The worker of the job has shown life."""

    def reported(self, job: Job, report: Mapping[str, Any]) -> Decision:
        """An epoch is done; `report` is `EpochReport.as_dict()`."""

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        """The run is trained and evaluated; `result` is `RunResult.as_dict()`."""

    def stopped(self, job: Job) -> None:
        """The run was closed between epochs, as decided or because the engine stops."""

    def failed(self, job: Job, failure: Failure) -> None:
        """The run failed; `next_job` may give it again."""


class Errands:
    """A Handler of jobs beside a sweep's runs, each of which is given once."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = deque(jobs)
        self.results: dict[str, Mapping[str, Any]] = {}
        """What those returned that finished, by their digests."""
        self.failures: dict[str, Failure] = {}
        """Why others did not."""

    def next_job(self) -> Job | Wait:
        """See Handler."""
        return self._jobs.popleft() if self._jobs else Wait.NEVER

    def started(self, job: Job, worker: str) -> None:
        """See Handler."""
        logger.debug("%s makes %s", worker, job.label)

    def alive(self, job: Job) -> None:
        """See Handler."""

    def reported(self, job: Job, report: Mapping[str, Any]) -> Decision:
        """See Handler."""
        del job, report
        return Decision.CONTINUE

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        """See Handler."""
        self.results[job.digest] = result

    def stopped(self, job: Job) -> None:
        """See Handler."""

    def failed(self, job: Job, failure: Failure) -> None:
        """See Handler."""
        logger.info("no worker made %s (%s): %s", job.label, failure.kind, failure.message)
        logger.debug("%s", failure.log_tail)
        self.failures[job.digest] = failure


def one_by_one(handler: Handler, stopping: Callable[[], bool]) -> Iterator[Job]:
    """The handler's jobs, each when the one before has ended, until none is left or `stopping`."""
    while not stopping():
        job = handler.next_job()
        if job is Wait.NEVER:
            return
        if isinstance(job, Wait):
            time.sleep(POLL)
            continue
        yield job


class Engine(ABC):
    """Executes the jobs of a handler."""

    @property
    @abstractmethod
    def hardware(self) -> Hardware:
        """What one run gets to compute with."""

    def start(self) -> None:  # noqa: B027 - what has nothing to start need not say so
        """Start what runs will need, so that the first one does not wait for it."""

    @abstractmethod
    def run(self, handler: Handler) -> None:
        """Execute until the handler has no more jobs and none is running, or `stop` was called."""

    @abstractmethod
    def stop(self, *, now: bool = False) -> None:
        """Start nothing more; close running jobs after their epoch, or at once.

        May be called from a signal handler or another thread.
        """

    def release(self) -> None:  # noqa: B027 - what lets go at once need not say so
        """Let workers that have no job end, without waiting for them."""

    @abstractmethod
    def close(self) -> None:
        """Let go of workers."""
