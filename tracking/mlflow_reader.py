"""The sweeps of an MLflow server, read for a comparison; nothing is written there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tracking import kept_results, run_tags, served
from tracking.base import ServiceUnreachable, TrackingError
from tracking.joint import Part
from tracking.kept_results import Result, Settings
from tracking.mlflow_errors import deleted_experiment, translated
from tracking.names import unknown
from tracking.privacy import stay_private
from tracking.reachable import check_reachable, sqlite_file
from tracking.served import ServedRun, ServedSweep
from tracking.where import EXPERIMENT, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

THREADS = 8
PAGE = 1000
"""Runs in one answer."""
_ENVIRONMENT = {
    # One attempt a request: whoever reads may simply ask again.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class MlflowReader:
    """One experiment of an MLflow server or database.

    Raises ServiceUnreachable when nothing answers, and TrackingError when the place cannot be used
    or there is no such experiment.
    """

    def __init__(self, uri: str, experiment: str = EXPERIMENT) -> None:
        self._uri = uri
        self._client = self._connect()
        with translated(self._uri):
            self._experiment = self._experiment_id(experiment)

    def sweeps(self) -> list[ServedSweep]:
        """Every sweep, in the order in which they were begun."""
        # An answer that was lost may have left a second run of a sweep: the first one is meant.
        first: dict[tuple[str, str], ServedSweep] = {}
        for run in self._search({"carft.kind": "sweep"}):
            sweep = ServedSweep(_plain(run), run.info.run_id, run.info.start_time)
            first.setdefault((sweep.name, sweep.home), sweep)
        return list(first.values())

    def part(self, sweep: ServedSweep, name: str | None = None) -> Part:
        """A sweep's runs and how it judges, under `name` (its own)."""
        runs: dict[str, ServedRun] = {}
        for run in map(_plain, self._search({"mlflow.parentRunId": sweep.run_id})):
            runs.setdefault(run.digest, run)
        with TemporaryDirectory() as folder:
            settings, results = self._files(sweep, runs, Path(folder))
        return served.part(sweep, runs, settings, results, name or sweep.name)

    def _files(
        self, sweep: ServedSweep, runs: Mapping[str, ServedRun], folder: Path
    ) -> tuple[Settings | None, dict[str, Result]]:
        """The list of the sweep's runs, and the results of those that are done."""

        def text(run: ServedRun, name: str, tag: str) -> str | None:
            there = run.tags.get(tag) == name
            return self._text(run.artifacts, name, folder / run.digest) if there else None

        with ThreadPoolExecutor(THREADS) as pool:
            results = pool.map(
                lambda run: text(run, kept_results.RESULT, kept_results.HAS_RESULT), runs.values()
            )
            listed = text(sweep.run, kept_results.SETTINGS, kept_results.HAS_SETTINGS)
            found = {
                digest: result
                for digest, told in zip(runs, results, strict=True)
                if told is not None and (result := kept_results.read_result(told)) is not None
            }
        return None if listed is None else kept_results.read_settings(listed), found

    def _text(self, place: str, name: str, folder: Path) -> str | None:
        """The content of an artifact below `place`; None when it is gone."""
        from mlflow.artifacts import download_artifacts, list_artifacts
        from mlflow.exceptions import MlflowException

        with translated(self._uri):
            try:
                file = download_artifacts(
                    artifact_uri=f"{place}/{name}", dst_path=str(folder), tracking_uri=self._uri
                )
                return Path(file).read_text(encoding="utf-8")
            except (MlflowException, OSError):
                # Each kind of store says in another way that there is no such file.
                there = list_artifacts(artifact_uri=place, tracking_uri=self._uri)
                if any(entry.path == name for entry in there):
                    raise
                return None

    def _search(self, tags: Mapping[str, str]) -> Iterator[Run]:
        """Every run with these tags, in the order in which they were begun."""
        token: str | None = None
        while True:
            with translated(self._uri):
                page = self._client.search_runs(
                    [self._experiment],
                    run_tags.query(tags),
                    max_results=PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            yield from page
            token = page.token
            if not token:
                return

    def _connect(self) -> MlflowClient:
        stay_private()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        check_reachable(self._uri)
        file = sqlite_file(self._uri)
        if file is not None and not file.exists():
            raise TrackingError(f"there is no MLflow database {file}")
        # SQLAlchemy, Alembic and the database drivers each raise errors of their own here.
        try:
            from mlflow import MlflowClient

            with translated(self._uri):
                return MlflowClient(self._uri)
        except (ServiceUnreachable, TrackingError):
            raise
        except Exception as error:
            place = without_password(self._uri)
            raise TrackingError(f"MLflow cannot use {place}: {error}") from error

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            names = [experiment.name for experiment in self._client.search_experiments()]
            place = without_password(self._uri)
            raise TrackingError(f"{place}: {unknown('experiment', name, names)} See --experiment.")
        if found.lifecycle_stage == "deleted":
            raise deleted_experiment(self._uri, name, found.experiment_id)
        return found.experiment_id


def _plain(run: Run) -> ServedRun:
    return ServedRun(
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        artifacts=run.info.artifact_uri,
    )
