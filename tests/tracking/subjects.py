"""Trackers to test, each with a way to see what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from carft_sweep.tracking.store.base import DatasetInput, RunKey, Tracker
from carft_sweep.tracking.store.mlflow_store import DESCRIBED, NAMED
from tests.tracking.memory_store import MemoryTracker

Points = list[tuple[int, int, str]]
"""(step, timestamp, value as text), sorted: NaN equals NaN."""


@dataclass
class Seen:
    """What a store keeps of a run, in one shape for every store."""

    name: str
    state: str
    started: int
    ended: int | None
    parent: RunKey | None
    params: dict[str, str]
    tags: dict[str, str]
    history: dict[str, Points]
    artifacts: dict[str, bytes]
    datasets: list[DatasetInput]


@dataclass
class Subject:
    """A tracker, and `look` into what is behind it. `look` gives None for no such run."""

    tracker: Tracker
    look: Callable[[RunKey], Seen | None]

    def see(self, key: RunKey) -> Seen:
        """What is kept of a run."""
        seen = self.look(key)
        assert seen is not None, f"{key} is not there"
        return seen


def points(values: Iterable[tuple[int, int, float]]) -> Points:
    """Sorted, and comparable when a value is NaN."""
    return sorted((step, timestamp, repr(value)) for step, timestamp, value in values)


def look_into_memory(memory: MemoryTracker) -> Callable[[RunKey], Seen | None]:
    """Reads the twin."""

    def look(key: RunKey) -> Seen | None:
        run = memory.runs.get(key)
        if run is None:
            return None
        return Seen(
            name=run.name,
            state=run.state,
            started=run.started,
            ended=run.ended,
            parent=run.parent,
            params=dict(run.params),
            tags=dict(run.tags),
            history={name: points(run.history[name]) for name in run.history},
            artifacts=dict(run.artifacts),
            datasets=list(run.datasets),
        )

    return look


def look_into_mlflow(uri: str, experiment: str) -> Callable[[RunKey], Seen | None]:
    """Reads MLflow through a client of its own."""

    def look(key: RunKey) -> Seen | None:
        client = MlflowClient(uri)
        runs = [run for run in all_runs(uri, experiment) if key_of(run) == key]
        if not runs:
            return None
        (run,) = runs  # a run of this key was opened once
        return seen_in(client, run)

    return look


def all_runs(uri: str, experiment: str) -> list[Run]:
    """Every run of an experiment, in any order."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def key_of(run: Run) -> RunKey:
    """The key that a run of MLflow was opened with."""
    tags = run.data.tags
    return RunKey(tags["carft.sweep"], tags.get("carft.run", ""), tags.get("carft.arm", ""))


def seen_in(client: MlflowClient, run: Run) -> Seen:
    """A run of MLflow in the common shape."""
    parent = run.data.tags.get("mlflow.parentRunId")
    states = {"RUNNING": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
    own = ("carft.kind", "carft.sweep", "carft.run", "carft.arm", "carft.home", NAMED, DESCRIBED)
    return Seen(
        name=run.info.run_name,
        state=states[run.info.status],
        started=run.info.start_time,
        ended=run.info.end_time,
        parent=None if parent is None else key_of(client.get_run(parent)),
        params=dict(run.data.params),
        tags={
            name: value
            for name, value in run.data.tags.items()
            if name not in own and not name.startswith("mlflow.")
        },
        history={name: _history(client, run.info.run_id, name) for name in run.data.metrics},
        artifacts=_artifacts(client, run.info.run_id),
        datasets=sorted(_datasets(run), key=lambda dataset: dataset.name),
    )


def _history(client: MlflowClient, run_id: str, name: str) -> Points:
    found = client.get_metric_history(run_id, name)
    return points([(metric.step, metric.timestamp, metric.value) for metric in found])


def _artifacts(client: MlflowClient, run_id: str, below: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in client.list_artifacts(run_id, below):
        if entry.is_dir:
            found |= _artifacts(client, run_id, entry.path)
        else:
            found[entry.path] = Path(client.download_artifacts(run_id, entry.path)).read_bytes()
    return found


def _datasets(run: Run) -> list[DatasetInput]:
    import mlflow.data

    found = []
    for entry in run.inputs.dataset_inputs if run.inputs else ():
        source: Any = mlflow.data.get_source(entry)
        tags = {tag.key: tag.value for tag in entry.tags}
        found.append(
            DatasetInput(
                name=entry.dataset.name,
                digest=entry.dataset.digest,
                source=source.uri if hasattr(source, "uri") else source.url,
                context=tags["mlflow.data.context"],
            )
        )
    return found
