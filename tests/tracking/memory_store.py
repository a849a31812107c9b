"""A tracker in memory, the twin of the real store for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from carft_sweep.regular_files import read_regular
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.store import base, mlflow_limits


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
    parent: base.RunKey | None
    state: base.State = "running"
    ended: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: dict[str, list[Point]] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    datasets: list[base.DatasetInput] = field(default_factory=list)


class MemoryTracker(base.Tracker):
    """Keeps every run in `runs`, under the limits that the real store has, as Tracker says."""

    def __init__(self) -> None:
        self.runs: dict[base.RunKey, MemoryRun] = {}
        self.views: dict[tuple[str, base.Kind], base.RunsView] = {}
        """By sweep, of all sweeps by "", and by kind."""
        self.closed = False

    def start_run(self, start: base.RunStart) -> None:
        if start.parent is not None:
            self._run(start.parent)
        earlier = self.runs.pop(start.key, None) if start.replaces else None
        new = MemoryRun(start.name, start.timestamp, parent=start.parent)
        run = self.runs.setdefault(start.key, new)
        run.name, run.state = start.name, "running"
        params = mlflow_limits.params(start.params)
        if earlier is not None:
            own = {name for name in earlier.tags if not name.startswith(("carft.", "mlflow."))}
            run.tags |= {name: earlier.tags[name] for name in own}
        run.tags |= mlflow_limits.tags(start.tags) | mlflow_limits.changed(run.params, params)
        run.params = params | run.params

    def log_metrics(self, key: base.RunKey, values: Sequence[base.Metric]) -> None:
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

    def log_datasets(self, key: base.RunKey, datasets: Sequence[base.DatasetInput]) -> None:
        run = self._run(key)
        known = {(dataset.name, dataset.digest) for dataset in run.datasets}
        new = mlflow_limits.datasets(datasets)
        run.datasets += [dataset for dataset in new if (dataset.name, dataset.digest) not in known]

    def set_tags(self, key: base.RunKey, values: Mapping[str, str]) -> None:
        self._run(key).tags |= mlflow_limits.tags(values)

    def log_artifact(self, key: base.RunKey, path: Path) -> None:
        run = self._run(key)
        try:
            content = read_regular(path)
        except OSError as error:
            raise TrackingError(f"cannot keep {path}: {error.strerror}") from error
        run.artifacts[path.name] = content

    def end_run(self, key: base.RunKey, state: base.EndState, *, timestamp: int) -> None:
        run = self._run(key)
        run.state, run.ended = state, timestamp

    def remove_run(self, key: base.RunKey) -> None:
        self.runs.pop(key, None)

    def remove_sweep(self, sweep: str) -> None:
        self.runs = {key: run for key, run in self.runs.items() if key.sweep != sweep}
        self.views = {key: view for key, view in self.views.items() if key[0] != sweep}

    def keep_view(self, view: base.RunsView, sweep: base.RunKey, *, timestamp: int) -> None:
        del timestamp
        self._run(sweep)
        self.views["" if view.kind == "sweep" else sweep.sweep, view.kind] = view

    def runs_of(self, sweep: str) -> dict[str, base.TrackedRun]:
        own = {key: run for key, run in self.runs.items() if key.sweep == sweep}
        ids = {key: self.run_id(key) or "" for key in own}
        return {key.name: base.TrackedRun(ids[key], run.state) for key, run in own.items()}

    def artifacts(self, key: base.RunKey) -> set[str]:
        return {name for name in self._run(key).artifacts if "/" not in name}

    def run_id(self, key: base.RunKey) -> str | None:
        """`sweep/digest` of a run that was opened."""
        return f"{key.sweep}/{key.name}" if key in self.runs else None

    def close(self) -> None:
        self.closed = True

    def _run(self, key: base.RunKey) -> MemoryRun:
        if key not in self.runs:
            raise TrackingError(
                f"{base.describe(key.name)} of sweep {key.sweep!r} was never opened"
            )
        return self.runs[key]
