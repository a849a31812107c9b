"""Recording a finished sweep in MLflow, beside MLflow's own client with the same records."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from carft_sweep.sweeps.api import run_sweep
from carft_sweep.sweeps.bench.measurement import Effort, Measurement, take_turns
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.results.projection import project
from carft_sweep.tracking.store.base import RunKey
from carft_sweep.tracking.store.mlflow_store import open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

SEEDS, QUICK_SEEDS = 10, 2
NAME = "bench"
CLIENT = "MLflow's client"


class _Record(NamedTuple):
    """All that MLflow has of one run."""

    run: Run
    metrics: list[Metric]
    artifacts: list[Path]


def measure_recording(effort: Effort) -> Iterator[Measurement]:
    """Measure what it takes to bring a sweep's runs into a database that has none of them."""
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as folder:
        home = Path(folder) / "home"
        count = _finish_sweep(home, QUICK_SEEDS if effort.quick else SEEDS)
        records = [*_records(home)]
        numbers = itertools.count()
        client, experiment = _new_client(Path(folder) / "client.db")

        def send() -> None:
            for record in records:
                _send(client, experiment, record)

        def record_anew() -> float:
            return _project(home, Path(folder) / f"home-{next(numbers)}")

        seconds = take_turns(effort.rounds, {CLIENT: send, "ours": record_anew})
        name = f"record {count} runs in MLflow"
        yield Measurement(name, CLIENT, seconds[CLIENT], seconds["ours"])


def _finish_sweep(home: Path, seeds: int) -> int:
    """Run a sweep of one step a run, and return how many runs it has."""
    spec: dict[str, Any] = {
        "name": NAME,
        "method": "grid",
        "metric": {"name": "id/val/top1", "goal": "maximize"},
        "parameters": {"algorithm.kl_weight": {"values": [1, 3]}},
        "seeds": [*range(seeds)],
        "baselines": ["zero_shot", "fine_tune"],
        "engine": "local",
        "report": {"page": False, "model": False},
        "trial": {
            "data": {"family": "icon_shift", "train_fraction": 0.05, "shifts": ["pixel"]},
            "algorithm": {"name": "car_ft"},
            "optim": {"epochs": 3},
            "merges": [{"name": "wise_ft", "alphas": [0.0, 0.5, 1.0]}],
        },
    }
    run_sweep(spec, home=home, in_process=True, quiet=True)
    return 1 + 3 * seeds


def _project(home: Path, copy: Path) -> float:
    """Seconds of recording the runs of a home in a copy of it that has only sweeps and runs."""
    for part in ("sweeps", "runs"):
        shutil.copytree(home / part, copy / part, ignore=shutil.ignore_patterns("sent"))
    with closing(open_store(copy)) as store:
        store.run_id(RunKey(NAME))  # makes the database
        began = time.perf_counter()
        project(Home(copy), NAME, store)
        seconds = time.perf_counter() - began
    shutil.rmtree(copy)
    return seconds


def _records(home: Path) -> Iterator[_Record]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments, max_results=1000):
        id_, folder = run.info.run_id, Path(unquote(urlsplit(run.info.artifact_uri).path))
        metrics = [
            point for name in run.data.metrics for point in client.get_metric_history(id_, name)
        ]
        yield _Record(run, metrics, sorted(file for file in folder.rglob("*") if file.is_file()))


def _new_client(database: Path) -> tuple[MlflowClient, str]:
    """Make a database, and return a client of it and the id of an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    place = database.with_suffix(".artifacts").as_uri()
    return client, client.create_experiment(NAME, artifact_location=place)


def _send(client: MlflowClient, experiment: str, record: _Record) -> None:
    from mlflow.entities import Param, RunTag

    data, tags = record.run.data, record.run.data.tags
    id_ = client.create_run(experiment, tags=tags, run_name=record.run.info.run_name).info.run_id
    params = [Param(name, value) for name, value in data.params.items()]
    client.log_batch(id_, record.metrics, params, [RunTag(*tag) for tag in tags.items()])
    for file in record.artifacts:
        client.log_artifact(id_, str(file))
    client.set_terminated(id_, record.run.info.status)
