"""The seam between a sweep and the place where its runs execute.

The engine drives and the handler decides, since Ray Tune owns its loop: its searcher requests the
next job, its scheduler whether a run continues. The local engine has the same shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from carft_sweep.carft_core.runs.result import Decision
    from carft_sweep.sweeps.engines.resources import Hardware

POLL = 0.25
"""Seconds between two looks at the clock and at whether to stop."""

FailureClass = Literal["nan", "out_of_memory", "data", "preempted", "crashed", "timeout"]


@dataclass(frozen=True)
class Job:
    """One run to be executed: all it needs, as plain data."""

    digest: str
    label: str
    """For display: `car_ft kl_weight=0.3 seed 1`."""
    config: Mapping[str, Any]
    """`TrialConfig.as_dict()`, with every `auto` resolved."""
    seed: int
    workdir: str
    imports: Sequence[str] = ()
    """Modules of the user's own to import first: names, or paths of files."""
    avoid: Sequence[str] = ()
    """Names of nodes on which it failed: it is placed there only if no other node is left."""


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
    unfit: bool = False
    """Whether the node can serve no run at all, so that the run is not at fault."""

    def as_dict(self) -> dict[str, str]:
        """Return the record of the failure that is stored with the run."""
        return {"kind": self.kind, "message": self.message, "log_tail": self.log_tail}


class Wait(Enum):
    """What `next_job` returns when there is no job just now."""

    LATER = "later"
    """Every remaining job waits for a running one."""
    NEVER = "never"
    """Nothing is left to be started."""


class Handler(Protocol):
    """The sweep's side of an engine, which calls it from one thread only."""

    def next_job(self) -> Job | Wait:
        """Return the next run to start, or why to wait. Called only when a worker is free, since a
        search proposes better with more results."""

    def usable(self, nodes: Collection[str]) -> Collection[str]:
        """Return those of `nodes`, the names of all that there are, on which runs may begin. Called
        at intervals by engines with several nodes."""

    def started(self, job: Job, worker: str) -> None:
        """Record that a worker has begun the job."""

    def alive(self, job: Job) -> None:
        """Record that the job's worker has shown a sign of life."""

    def reported(self, job: Job, report: Mapping[str, Any]) -> Decision:
        """Record an epoch's report (`EpochReport.as_dict()`); return whether the run continues."""

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        """Record that a run is trained and evaluated. Its metrics are in its folder; of `result`
        (`RunResult.as_dict()`) only the warnings are read."""

    def stopped(self, job: Job) -> None:
        """Record a run that was closed between epochs, by decision or because the engine stops."""

    def failed(self, job: Job, failure: Failure) -> None:
        """Record a failed run; `next_job` may return the run again."""


class Engine(ABC):
    """Executes the jobs of a handler."""

    # Plain flags: a signal handler that took a lock could wait for itself.
    is_stopping = is_stopping_now = False

    @property
    @abstractmethod
    def hardware(self) -> Hardware:
        """The devices that one run gets."""

    def start(self) -> None:  # noqa: B027 - what has nothing to start need not say so
        """Start workers before the first job, so that it does not wait for them."""

    @abstractmethod
    def run(self, handler: Handler) -> None:
        """Execute jobs until the handler has no more and none is running, or `stop` was called."""

    def stop(self, *, now: bool = False) -> None:
        """Start no more jobs; close running jobs after their epoch, or at once. May be called from
        a signal handler or another thread."""
        self.is_stopping = True
        self.is_stopping_now = self.is_stopping_now or now

    def close(self) -> None:  # noqa: B027 - nor what has nothing to release
        """Release the engine's workers."""
