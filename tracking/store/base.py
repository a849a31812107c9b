"""The tracker: what a sweep's runs are told to, whatever keeps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

EndState = Literal["finished", "failed", "killed"]
ARTIFACT = "artifact:"
"""What the target of a link begins with, in a run's description, that is an artifact of the run."""


class RunKey(NamedTuple):
    """Who a tracked run is, whatever the store calls it: idempotent over restarts.

    The parent run of a sweep has the digest "".
    """

    sweep: str
    digest: str = ""


class Metric(NamedTuple):
    """One value of one metric. `timestamp` in milliseconds since the epoch, set when measured."""

    name: str
    value: float
    step: int
    timestamp: int


@dataclass(frozen=True)
class DatasetInput:
    """Metadata of a data set that a run reads. `digest` is cut to what the store allows."""

    name: str
    digest: str
    source: str
    context: str
    """`train`, `val`, `test`, or `shift/<name>`."""


@dataclass(frozen=True)
class RunStart:
    """What is known of a run when it is opened."""

    key: RunKey
    name: str
    timestamp: int
    parent: RunKey | None = None
    params: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[DatasetInput] = ()


class Tracker(ABC):
    """A place where runs are recorded. Each call may be repeated and then changes nothing more.

    A call raises ServiceUnreachable while the store cannot be used, and TrackingError where what it
    was given is at fault.
    """

    def preflight(self) -> None:
        """Find out now whether the store will take runs, where that depends on other people.

        Raises AccessDenied or TrackingError where it never will as things are, and
        ServiceUnreachable where it will once it is there again.
        """
        return

    @abstractmethod
    def start_run(self, start: RunStart) -> None:
        """Begin a run, or set the one of the same key running again."""

    @abstractmethod
    def log_metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        """Add values; the same (name, step, timestamp, value) is kept once."""

    @abstractmethod
    def set_tags(self, key: RunKey, values: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one.

        In the description `mlflow.note.content`, which is Markdown, a link to `artifact:NAME` is
        one to an artifact of this run: a store with pages puts its address there.
        """

    @abstractmethod
    def log_artifact(self, key: RunKey, path: Path, *, folder: str = "") -> None:
        """Keep a copy of the file `path` under `folder` of the run."""

    @abstractmethod
    def end_run(self, key: RunKey, state: EndState, *, timestamp: int) -> None:
        """End a run. One that was ended may be started again."""

    @abstractmethod
    def run_id(self, key: RunKey) -> str | None:
        """Return what the store calls a run; None where it has none."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the store."""
