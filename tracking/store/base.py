"""The tracker: the interface of a store in which a sweep's runs are recorded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

EndState = Literal["finished", "failed", "killed"]
State = Literal["running"] | EndState
GROUP = "carft.group"
"""Tag by which the view of all sweeps is sorted, of a sweep and of those of its arms that the view
shows: the newest sweep is first, its arms behind it. Empty for other arms."""
VARIED = "carft.varied"
"""The tag of a run that lists, as JSON, those of its parameters that the sweep varies."""
ARTIFACT = "artifact:"
"""Beginning of the target of a link, in a run's description, to an artifact of the run."""


Kind = Literal["sweep", "run", "arm"]
ARM = "arm "
"""Beginning of an arm's `RunKey.name`, which no digest has."""
_DIGITS = 12
"""Number of a digest's digits in a message."""


class RunKey(NamedTuple):
    """Store-independent identity of a run; the same after a restart. A trained run has a digest,
    the summary of an arm the digest of the arm's key, the run of a sweep neither."""

    sweep: str
    digest: str = ""
    arm: str = ""

    @property
    def kind(self) -> Kind:
        """Kind of the run: sweep, run or arm."""
        return "run" if self.digest else "arm" if self.arm else "sweep"

    @property
    def name(self) -> str:
        """Name of the run in the sweep: its digest, `arm DIGEST`, or "" for the sweep's own run."""
        return f"{ARM}{self.arm}" if self.arm else self.digest


def describe(name: str) -> str:
    """Return words for a run by its `RunKey.name`: `the sweep`, `arm 5d0e93b1c2f4a687` or
    `run 1f3a9c02d4e5`."""
    if not name:
        return "the sweep"
    return name if name.startswith(ARM) else f"run {name[:_DIGITS]}"


class TrackedRun(NamedTuple):
    """A run as the store has it now."""

    run_id: str
    state: State


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
    """`training`, `validation`, `test`, or `shift/<name>`."""


@dataclass(frozen=True)
class RunStart:
    """What a run is opened with; `timestamp` in milliseconds since the epoch."""

    key: RunKey
    name: str
    timestamp: int
    parent: RunKey | None = None
    params: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    replaces: bool = False
    """Whether an earlier run of the key is removed, as its parameters and metric names cannot
    change. The new run keeps the name, description and tags that somebody gave it in the store."""


@dataclass(frozen=True)
class RunsView:
    """What a store with pages shows of runs: a table, and charts of all of them."""

    title: str
    kind: Kind
    """Of which runs of a sweep, `arm` or `run`; `sweep`: of all sweeps, with their arms."""
    metrics: Sequence[str]
    """Columns of metrics, in this order."""
    params: Sequence[str] = ()
    """Columns of parameters, behind the metrics."""
    tags: Sequence[str] = ()
    """Columns of tags, before the metrics."""
    sort_by: str = ""
    """The metric, else the tag, by which rows are sorted, the largest first."""
    scatters: Sequence[tuple[str, str]] = ()
    """The two axes of each scatter chart, x and y: metrics or parameters."""
    lines: Sequence[str] = ()
    """Metrics by step, one chart for each."""


class Tracker(ABC):
    """A place where runs are recorded. Each call may be repeated and then changes nothing more. A
    call raises ServiceUnreachable while the store cannot be used, and TrackingError where its
    arguments are at fault."""

    def preflight(self) -> None:
        """Check now whether the store accepts runs, as far as a server's settings decide it. Raises
        AccessDenied or TrackingError where the store rejects runs until a setting changes, and
        ServiceUnreachable where the store does not answer."""
        return

    @abstractmethod
    def start_run(self, start: RunStart) -> None:
        """Begin a run, or set the run with the same key running again."""

    @abstractmethod
    def log_metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        """Add values to a run; the same (name, step, timestamp, value) is stored once."""

    @abstractmethod
    def log_datasets(self, key: RunKey, datasets: Sequence[DatasetInput]) -> None:
        """Add the data sets that a run reads; equal names and digests are stored once."""

    @abstractmethod
    def set_tags(self, key: RunKey, values: Mapping[str, str]) -> None:
        """Set tags of a run; a later value replaces an earlier one.

        In the description `mlflow.note.content`, which is Markdown, a link to `artifact:NAME` leads
        to an artifact of this run, and an image of `artifact:NAME` shows that artifact: a store
        with pages inserts its address. Other images, and HTML, are shown as text.
        """

    @abstractmethod
    def log_artifact(self, key: RunKey, path: Path) -> None:
        """Keep a copy of the file `path`, in place of an earlier one of its name."""

    @abstractmethod
    def end_run(self, key: RunKey, state: EndState, *, timestamp: int) -> None:
        """End a run at `timestamp` (milliseconds). A run that was ended may be started again."""

    @abstractmethod
    def remove_run(self, key: RunKey) -> None:
        """Remove a run with all its records; do nothing if the run does not exist."""

    @abstractmethod
    def remove_sweep(self, sweep: str) -> None:
        """Remove all runs of a sweep, and its view; do nothing if there are none."""

    @abstractmethod
    def keep_view(self, view: RunsView, sweep: RunKey, *, timestamp: int) -> None:
        """Store a view of runs, in place of the earlier view of its kind, if the store has pages. A
        view of kind `sweep` shows all sweeps, another one the runs of `sweep`; the description of
        the group of all runs links to the view of all sweeps."""

    @abstractmethod
    def runs_of(self, sweep: str) -> dict[str, TrackedRun]:
        """Return every run of a sweep, by `RunKey.name`."""

    @abstractmethod
    def artifacts(self, key: RunKey) -> set[str]:
        """Return the names of what is at the top of a run's artifacts. Any thread may call this."""

    @abstractmethod
    def run_id(self, key: RunKey) -> str | None:
        """Return the store's id of a run; None for an unknown run."""

    def experiment(self) -> str | None:
        """Return the store's id of the group of all runs, as used in addresses of its pages. None
        where the store has no pages."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close the connection to the store."""
