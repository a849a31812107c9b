"""Trackers to test, each with a way to see what it keeps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from carft_sweep.tracking.store.base import DatasetInput, RunKey, State, Tracker
from carft_sweep.tracking.store.mlflow_store import DESCRIBED, NAMED
from tests.tracking.memory_store import MemoryRun, MemoryTracker, Point

Seen = MemoryRun
"""What a store keeps of a run, with sorted points."""


@dataclass
class Subject:
    """A tracker, and `look` into what is behind it. `look` gives None for no such run."""

    tracker: Tracker
    look: Callable[[RunKey], Seen | None]

    def see(self, key: RunKey) -> Seen:
        seen = self.look(key)
        assert seen is not None, f"{key} is not there"
        return seen


def points(values: Iterable[tuple[int, int, float]]) -> list[Point]:
    """Sorted, with one NaN object, so that two histories with the same NaN are equal."""
    alike = ((step, at, math.nan if math.isnan(value) else value) for step, at, value in values)
    return sorted((Point(*point) for point in alike), key=lambda point: point[:2])


def look_into_memory(memory: MemoryTracker) -> Callable[[RunKey], Seen | None]:
    def look(key: RunKey) -> Seen | None:
        run = copy.deepcopy(memory.runs.get(key))
        if run is not None:
            run.history = {name: points(values) for name, values in run.history.items()}
        return run

    return look


def look_into_mlflow(uri: str, experiment: str) -> Callable[[RunKey], Seen | None]:
    """Reads MLflow through a client of its own; a run of a key was opened once."""

    def look(key: RunKey) -> Seen | None:
        runs = [run for run in all_runs(uri, experiment) if key_of(run) == key]
        assert len(runs) < 2
        return seen_in(MlflowClient(uri), runs[0]) if runs else None

    return look


def all_runs(uri: str, experiment: str) -> list[Run]:
    client = MlflowClient(uri)
    stored = client.get_experiment_by_name(experiment)
    return [] if stored is None else list(client.search_runs([stored.experiment_id]))


def key_of(run: Run) -> RunKey:
    tags = run.data.tags
    return RunKey(tags["carft.sweep"], tags.get("carft.run", ""), tags.get("carft.arm", ""))


STATES: dict[str, State] = {"RUNNING": "running", "FINISHED": "finished"}
STATES |= {"FAILED": "failed", "KILLED": "killed"}
OWN = ("carft.kind", "carft.sweep", "carft.run", "carft.arm", "carft.home", NAMED, DESCRIBED)


def seen_in(client: MlflowClient, run: Run) -> Seen:
    """A run of MLflow in the common shape."""
    info, tags = run.info, run.data.tags
    parent = tags.get("mlflow.parentRunId")
    above = None if parent is None else key_of(client.get_run(parent))
    seen = Seen(info.run_name, info.start_time, above, STATES[info.status], info.end_time)
    seen.params = dict(run.data.params)
    seen.tags = {n: v for n, v in tags.items() if n not in OWN and not n.startswith("mlflow.")}
    seen.history = {name: _history(client, info.run_id, name) for name in run.data.metrics}
    seen.artifacts = _artifacts(client, info.run_id)
    seen.datasets = sorted(_datasets(run), key=lambda dataset: dataset.name)
    return seen


def _history(client: MlflowClient, run_id: str, name: str) -> list[Point]:
    history = client.get_metric_history(run_id, name)
    return points([(metric.step, metric.timestamp, metric.value) for metric in history])


def _artifacts(client: MlflowClient, run_id: str, below: str = "") -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for entry in client.list_artifacts(run_id, below):
        if entry.is_dir:
            contents |= _artifacts(client, run_id, entry.path)
        else:
            contents[entry.path] = Path(client.download_artifacts(run_id, entry.path)).read_bytes()
    return contents


def _datasets(run: Run) -> list[DatasetInput]:
    import mlflow.data

    datasets = []
    for entry in run.inputs.dataset_inputs if run.inputs else ():
        source: Any = mlflow.data.get_source(entry)
        where = source.uri if hasattr(source, "uri") else source.url
        context = {tag.key: tag.value for tag in entry.tags}["mlflow.data.context"]
        datasets.append(DatasetInput(entry.dataset.name, entry.dataset.digest, where, context))
    return datasets
