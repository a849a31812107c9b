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
    """Every verb may be told twice with the same arguments and then changes nothing more."""

    def reach(self) -> None:
        """Find out now whether what is told will be taken, where that depends on other people.

        Raises AccessDenied or TrackingError where it never will be as things are, and
        ServiceUnreachable where it will be once the store is there again.
        """
        return

    @abstractmethod
    def open(self, start: RunStart) -> None:
        """Begin a run, or take up the one of the same key again (state running)."""

    @abstractmethod
    def metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        """Add values; the same (name, step, timestamp, value) is kept once."""

    @abstractmethod
    def tags(self, key: RunKey, values: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one.

        In the description `mlflow.note.content`, which is Markdown, a link to `artifact:NAME` is
        one to an artifact of this run: a store with pages puts its address there.
        """

    @abstractmethod
    def artifact(self, key: RunKey, path: Path, *, folder: str = "") -> None:
        """Keep a copy of the file `path` under `folder` of the run."""

    @abstractmethod
    def end(self, key: RunKey, state: EndState, *, timestamp: int) -> None:
        """The run is over. A run that was ended may be opened again."""

    @abstractmethod
    def run_id(self, key: RunKey) -> str | None:
        """What the store calls this run, when it is known already."""

    @abstractmethod
    def flush(self, timeout: float) -> bool:
        """Wait until everything told is kept; False when it is not within `timeout` seconds."""

    @abstractmethod
    def close(self) -> None:
        """Flush what can be flushed at once and let go of the store."""
