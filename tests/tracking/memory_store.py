"""A tracker in memory, the twin of the real store for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from carft_sweep.regular_files import read_regular
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.store import mlflow_limits
from carft_sweep.tracking.store.base import (
    DatasetInput,
    EndState,
    Kind,
    Metric,
    RunKey,
    RunStart,
    RunsView,
    State,
    TrackedRun,
    Tracker,
    describe,
)


class Point(NamedTuple):
    """One value in the history of a metric."""

    step: int
    timestamp: int
    value: float


@dataclass
class MemoryRun:
    """What is kept of one run."""

    name: str
    started: int
    parent: RunKey | None
    state: State = "running"
    ended: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: dict[str, list[Point]] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    datasets: list[DatasetInput] = field(default_factory=list)


class MemoryTracker(Tracker):
    """Keeps every run in `runs`, under the limits that the real store has."""

    def __init__(self) -> None:
        self.runs: dict[RunKey, MemoryRun] = {}
        self.views: dict[tuple[str, Kind], RunsView] = {}
        """By sweep, of all sweeps by "", and by kind."""
        self.closed = False

    def start_run(self, start: RunStart) -> None:
        """Begin or take up a run. Raises TrackingError when its parent was never opened."""
        if start.parent is not None:
            self._run(start.parent)
        earlier = self.runs.pop(start.key, None) if start.replaces else None
        run = self.runs.setdefault(
            start.key, MemoryRun(start.name, start.timestamp, parent=start.parent)
        )
        run.name, run.state = start.name, "running"
        params = mlflow_limits.params(start.params)
        if earlier is not None:
            own = {name for name in earlier.tags if not name.startswith(("carft.", "mlflow."))}
            run.tags |= {name: earlier.tags[name] for name in own}
        run.tags |= mlflow_limits.tags(start.tags) | mlflow_limits.changed(run.params, params)
        run.params = params | run.params

    def log_metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        """Add values. Raises TrackingError for a run never opened."""
        run = self._run(key)
        finite, infinite_tags = mlflow_limits.metrics(values)
        run.tags |= infinite_tags
        for metric in finite:
            # One NaN object, so that two histories with the same NaN are equal.
            value = math.nan if math.isnan(metric.value) else metric.value
            points = run.history.setdefault(metric.name, [])
            point = Point(metric.step, metric.timestamp, value)
            if point not in points:
                points.append(point)

    def log_datasets(self, key: RunKey, datasets: Sequence[DatasetInput]) -> None:
        """Add data sets. Raises TrackingError for a run never opened."""
        run = self._run(key)
        known = {(dataset.name, dataset.digest) for dataset in run.datasets}
        run.datasets += [
            dataset
            for dataset in mlflow_limits.datasets(datasets)
            if (dataset.name, dataset.digest) not in known
        ]

    def set_tags(self, key: RunKey, values: Mapping[str, str]) -> None:
        """Set tags. Raises TrackingError for a run never opened."""
        self._run(key).tags |= mlflow_limits.tags(values)

    def log_artifact(self, key: RunKey, path: Path) -> None:
        """Keep the bytes. Raises TrackingError for a run never opened or no such file."""
        run = self._run(key)
        try:
            content = read_regular(path)
        except OSError as error:
            raise TrackingError(f"cannot keep {path}: {error.strerror}") from error
        run.artifacts[path.name] = content

    def end_run(self, key: RunKey, state: EndState, *, timestamp: int) -> None:
        """The run is over. Raises TrackingError for a run never opened."""
        run = self._run(key)
        run.state, run.ended = state, timestamp

    def remove_run(self, key: RunKey) -> None:
        """Forget the run."""
        self.runs.pop(key, None)

    def remove_sweep(self, sweep: str) -> None:
        """Forget its runs and its view."""
        self.runs = {key: run for key, run in self.runs.items() if key.sweep != sweep}
        self.views = {key: view for key, view in self.views.items() if key[0] != sweep}

    def keep_view(self, view: RunsView, sweep: RunKey, *, timestamp: int) -> None:
        """Keep the view. Raises TrackingError for a sweep never opened."""
        del timestamp
        self._run(sweep)
        self.views["" if view.kind == "sweep" else sweep.sweep, view.kind] = view

    def runs_of(self, sweep: str) -> dict[str, TrackedRun]:
        """Look up the runs that were opened."""
        return {
            key.name: TrackedRun(self.run_id(key) or "", run.state)
            for key, run in self.runs.items()
            if key.sweep == sweep
        }

    def artifacts(self, key: RunKey) -> set[str]:
        """List the files. Raises TrackingError for a run never opened."""
        return {name for name in self._run(key).artifacts if "/" not in name}

    def run_id(self, key: RunKey) -> str | None:
        """`sweep/digest` of a run that was opened."""
        return f"{key.sweep}/{key.name}" if key in self.runs else None

    def close(self) -> None:
        """Remember that it was let go of."""
        self.closed = True

    def _run(self, key: RunKey) -> MemoryRun:
        try:
            return self.runs[key]
        except KeyError:
            raise TrackingError(
                f"{describe(key.name)} of sweep {key.sweep!r} was never opened"
            ) from None
