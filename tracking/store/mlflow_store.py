"""The tracker over MLflow."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from carft_sweep.regular_files import open_regular
from carft_sweep.tracking.database import set_aside_if_damaged
from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import (
    EXPERIMENT,
    home_id,
    is_server,
    resolve_location,
    sqlite_file,
    waiting,
)
from carft_sweep.tracking.ownership import home_mode
from carft_sweep.tracking.store import mlflow_client, mlflow_limits
from carft_sweep.tracking.store.base import (
    ARTIFACT,
    GROUP,
    DatasetInput,
    EndState,
    Metric,
    RunKey,
    RunStart,
    RunsView,
    State,
    TrackedRun,
    Tracker,
    describe,
)
from carft_sweep.tracking.store.mlflow_errors import translated, uploading
from carft_sweep.tracking.store.mlflow_pages import (
    DESCRIPTION,
    SWEEPS,
    VIEW,
    artifact_source,
    leading_to_sweeps,
    run_page,
    saved_view,
    without_remote_content,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput as MlflowInput
    from mlflow.entities import Metric as MlflowMetric
    from mlflow.entities import Param, Run, RunTag
    from mlflow.store.entities import PagedList
    from mlflow.store.tracking.rest_store import RestStore


logger = logging.getLogger(__name__)

WRITTEN_BY = "carft.written_by"
"""A tag of the experiment: the version of MLflow that wrote to it last."""
NAMED, DESCRIBED = "carft.name", "carft.description"
"""Tags of a run: the name that it was given here, and a digest of its description. Where the run
has others, somebody has given it those, and they stay."""
RUNS = 1000
"""Number of runs of one page of a search."""
METRICS, TAGS = 1000, 100
"""Most entries of one request that MLflow takes; TAGS holds for parameters too."""
BYTES = 900_000
"""Most bytes of entries in a request; MLflow refuses a megabyte, the rest surrounds entries."""
_AROUND = 150


E = TypeVar("E", bound="MlflowMetric | Param | RunTag")


def batches(entries: Iterable[E], most: int) -> Iterator[list[E]]:
    """Yield the entries in order, at most `most` at a time, and no more than a request holds."""
    batch: list[E] = []
    size = 0
    for entry in entries:
        own = _AROUND + len(json.dumps(entry.key)) + len(json.dumps(entry.value))
        if batch and (len(batch) == most or size + own > BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += own
    if batch:
        yield batch


def identity(key: RunKey, home: str) -> dict[str, str]:
    """Return the tags that identify a run: `carft.kind`, `.sweep`, `.home`, `.run` or `.arm`."""
    tags = {"carft.kind": key.kind, "carft.sweep": key.sweep}
    if key.digest:
        tags["carft.run"] = key.digest
    if key.arm:
        tags["carft.arm"] = key.arm
    if home:
        tags["carft.home"] = home
    return mlflow_limits.tags(tags)


def query_of(tags: Mapping[str, str]) -> str:
    """Return the filter, in MLflow's query language, that finds runs with all these tags."""
    return " and ".join(f"tags.`{name}` = {_quoted(value)}" for name, value in tags.items())


def search_runs(
    client: MlflowClient | RestStore, experiment: str, tags: Mapping[str, str]
) -> list[Run]:
    """Return every run with these tags, in the order in which they were begun."""
    from mlflow.entities import ViewType
    from mlflow.utils import get_results_from_paginated_fn

    query, order = query_of(tags), ["attributes.start_time ASC"]

    def page(count: int, token: str | None) -> PagedList[Run]:
        return client.search_runs([experiment], query, ViewType.ACTIVE_ONLY, count, order, token)

    runs: list[Run] = get_results_from_paginated_fn(page, RUNS)
    return runs


def _quoted(value: str) -> str:
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value:
        return f'"{value}"'
    # The language has no escapes.
    raise TrackingError(f"a name may not hold both kinds of quotes: {value}")


_STATUS: dict[EndState, str] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_STATES: dict[str, State] = {status: state for state, status in _STATUS.items()}

_LINK = re.compile(rf"(!?)\[([^][]*)\]\({ARTIFACT}([^)]*)\)")


class MlflowStore(Tracker):
    """One experiment of an MLflow store. Makes no connection before it must. Runs are found again
    by their tags `carft.sweep`, `carft.run` and `carft.home`."""

    def __init__(
        self,
        uri: str,
        experiment: str = EXPERIMENT,
        artifact_root: Path | None = None,
        *,
        home: str = "",
    ) -> None:
        self._uri = uri
        self._experiment = experiment
        self._artifact_root = artifact_root
        self._home = home
        self._connected: tuple[MlflowClient, str] | None = None
        self._ids: dict[RunKey, str] = {}

    def check(self) -> None:
        """Connect now, creating the database or the experiment if missing. Raises
        ServiceUnreachable when nothing answers, and TrackingError when the store answers and cannot
        be used: a deleted experiment, an old schema, another program's database."""
        if self._connected is None:
            self._connected = self._connect()
        client, experiment = self._connected
        with translated(self._uri):
            client.get_experiment(experiment)

    def preflight(self) -> None:
        """Check the store (see Tracker). A home's own SQLite file is checked when it is opened."""
        if mlflow_client.own_file(self._uri, self._artifact_root) is None:
            mlflow_client.check_reachable(self._uri)
        if sqlite_file(self._uri) is not None:
            return
        if is_server(self._uri):
            mlflow_client.check_version(self._uri)
        self.check()
        with self._request() as (client, experiment):
            # Something harmless is written: to read an experiment is allowed to many more.
            client.set_experiment_tag(experiment, WRITTEN_BY, f"mlflow {version('mlflow')}")
            location = client.get_experiment(experiment).artifact_location
            if location.startswith("mlflow-artifacts:"):  # else the client's own way to the store
                mlflow_client.try_artifacts(self._uri, location)

    def start_run(self, start: RunStart) -> None:
        """Create the run, or set the run with the same key running again."""
        tags = {**start.tags, **identity(start.key, self._home)}
        if DESCRIPTION in tags:
            tags[DESCRIPTION] = without_remote_content(tags[DESCRIPTION])
        tags = _signed(mlflow_limits.tags({**tags, NAMED: start.name}))
        with self._request() as (client, experiment):
            if start.parent is not None:
                tags["mlflow.parentRunId"] = self._id(start.parent)
            run, name = self._search(start.key), start.name
            if run is not None:  # a name and a description that somebody gave the run there stay
                is_renamed = run.data.tags.get(NAMED, run.info.run_name) != run.info.run_name
                name = run.info.run_name if is_renamed else start.name
                if _is_described(run.data.tags):
                    tags.pop(DESCRIPTION, None)
            if run is None or start.replaces:
                own = identity(start.key, self._home)
                earlier = search_runs(client, experiment, own) if start.replaces else []
                tags |= {} if run is None else _foreign(run.data.tags)
                run = client.create_run(
                    experiment, start_time=start.timestamp, tags=tags, run_name=name
                )
                for other in earlier:  # the new one is there: nothing is lost in between
                    client.delete_run(other.info.run_id)
            elif run.info.status != "RUNNING" or run.info.run_name != name:
                client.update_run(run.info.run_id, status="RUNNING", name=name)
            self._ids[start.key] = run.info.run_id
            self._describe(run, start, tags)

    def log_metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        """Log metrics in batches; infinite values become a tag, names become valid for MLflow."""
        finite, infinite_tags = mlflow_limits.metrics(values)
        with self._request() as (client, _):
            from mlflow.entities import Metric as MlflowMetric

            run_id = self._id(key)
            entries = (MlflowMetric(m.name, m.value, m.timestamp, m.step) for m in finite)
            for batch in batches(entries, METRICS):
                client.log_batch(run_id, metrics=batch)
            self._set_tags(run_id, infinite_tags)

    def log_datasets(self, key: RunKey, datasets: Sequence[DatasetInput]) -> None:
        """Log data sets as the run's inputs; of equal names and digests MLflow keeps the first."""
        inputs = [_input(dataset) for dataset in mlflow_limits.datasets(datasets)]
        if inputs:
            with self._request() as (client, _):
                client.log_inputs(self._id(key), inputs)

    def set_tags(self, key: RunKey, values: Mapping[str, str]) -> None:
        """Set tags with valid names and values; links to artifacts lead to MLflow's page."""
        with self._request() as (client, experiment):
            run_id = self._id(key)
            linked = _signed(mlflow_limits.tags(_linked(values, experiment, run_id)))
            if DESCRIPTION in linked and _is_described(client.get_run(run_id).data.tags):
                del linked[DESCRIPTION], linked[DESCRIBED]
            self._set_tags(run_id, linked)

    def log_artifact(self, key: RunKey, path: Path) -> None:
        """Upload a file; a file of the same name is replaced."""
        try:
            os.close(open_regular(path))
        except OSError as error:
            raise TrackingError(f"cannot keep {path}: {error.strerror}") from error
        if (root := self._artifact_root) is not None:  # as MLflow makes it anybody may read it
            root.mkdir(mode=home_mode(root.parent), parents=True, exist_ok=True)
        with self._request() as (client, _), uploading(self._uri):
            client.log_artifact(self._id(key), str(path))

    def end_run(self, key: RunKey, state: EndState, *, timestamp: int) -> None:
        """Set MLflow's status and the end time of a run."""
        with self._request() as (client, _):
            client.set_terminated(self._id(key), status=_STATUS[state], end_time=timestamp)

    def remove_run(self, key: RunKey) -> None:
        """Move the run to MLflow's deleted runs, where `mlflow gc` finds it."""
        with self._request() as (client, _):
            run = self._search(key)
            if run is not None:
                client.delete_run(run.info.run_id)
        self._ids.pop(key, None)

    def remove_sweep(self, sweep: str) -> None:
        """Move the sweep's runs to MLflow's deleted ones; the models made of these runs stay."""
        tags = identity(RunKey(sweep), self._home)
        kind = tags.pop("carft.kind")
        with self._request() as (client, experiment):
            for run in search_runs(client, experiment, tags):
                if run.data.tags["carft.kind"] == kind:
                    for tag in client.get_experiment(experiment).tags:
                        if tag.startswith(f"{VIEW}{run.info.run_id}"):
                            client.delete_experiment_tag(experiment, tag)
                client.delete_run(run.info.run_id)
        self._ids = {key: id_ for key, id_ in self._ids.items() if key.sweep != sweep}

    def keep_view(self, view: RunsView, sweep: RunKey, *, timestamp: int) -> None:
        """Store the view in a tag of the experiment; a view of arms under the id of the sweep's
        run. MLflow's default view has no column with a metric, so the description of the
        experiment, if empty, gets a link to the view of the sweeps."""
        with self._request() as (client, experiment):
            sweep_id = self._id(sweep)
            name, query = SWEEPS, f"tags.`{GROUP}` != ''"
            if view.kind != "sweep":
                name = sweep_id if view.kind == "arm" else f"{sweep_id}-{view.kind}s"
                query = query_of({**identity(sweep, self._home), "carft.kind": view.kind})
            elif not client.get_experiment(experiment).tags.get(DESCRIPTION):
                client.set_experiment_tag(experiment, DESCRIPTION, leading_to_sweeps(experiment))
            text = saved_view(view, query, timestamp)
            client.set_experiment_tag(experiment, f"{VIEW}{name}", text)

    def runs_of(self, sweep: str) -> dict[str, TrackedRun]:
        """Return each run with the sweep's tags by `RunKey.name`; of equal keys the earliest."""
        tags = identity(RunKey(sweep), self._home)
        del tags["carft.kind"]
        runs: dict[str, TrackedRun] = {}
        with self._request() as (client, experiment):
            for run in search_runs(client, experiment, tags):
                own = run.data.tags
                key = RunKey(sweep, own.get("carft.run", ""), own.get("carft.arm", ""))
                if key.name not in runs:
                    state = _STATES.get(run.info.status, "running")
                    runs[key.name] = TrackedRun(run.info.run_id, state)
                    self._ids[key] = run.info.run_id
        return runs

    def artifacts(self, key: RunKey) -> set[str]:
        """Return the paths of the entries at the top of a run's artifacts."""
        with self._request() as (client, _), uploading(self._uri):
            return {entry.path for entry in client.list_artifacts(self._id(key))}

    def run_id(self, key: RunKey) -> str | None:
        """Return MLflow's id of a run."""
        if key not in self._ids:
            with self._request():
                run = self._search(key)
            if run is not None:
                self._ids[key] = run.info.run_id
        return self._ids.get(key)

    def experiment(self) -> str | None:
        """Return MLflow's id of the experiment."""
        return self._store()[1]

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        self._connected = None

    def _store(self) -> tuple[MlflowClient, str]:
        """Return the client and the experiment's id. Raises ServiceUnreachable, also where opening
        finds a mistake: no record is at fault."""
        if self._connected is None:
            try:
                self._connected = self._connect()
            except TrackingError as error:
                raise ServiceUnreachable(str(error)) from error
        return self._connected

    def _connect(self) -> tuple[MlflowClient, str]:
        file = sqlite_file(self._uri)
        with ExitStack() as stack:
            if file is not None:  # two processes must not both create the tables
                stack.enter_context(waiting(file.with_name(f"{file.name}.lock")))
                if mlflow_client.own_file(self._uri, self._artifact_root) is not None:
                    set_aside_if_damaged(file)
                    self._set_aside_if_moved(file)
                if not file.exists():
                    mlflow_client.create_database(file)
            client = mlflow_client.connect(self._uri)
            with translated(self._uri):
                return client, self._experiment_id(client)

    def _set_aside_if_moved(self, file: Path) -> None:
        """Move the database of a moved or copied home aside, with its artifacts: its runs are
        recorded again in a new database, and nothing is written at the old place."""
        before = mlflow_client.moved_from(self._uri, self._experiment, self._artifact_root)
        if before is None:
            return
        root = file.parent
        places = (root / f"before-move-{number}" for number in itertools.count(1))
        aside = next(place for place in places if not place.exists())
        aside.mkdir()
        logger.warning(
            "this home was moved or copied: its MLflow database kept artifacts in %s; it is set "
            "aside in %s, and the runs are recorded anew",
            before,
            aside,
        )
        for old in (*root.glob(f"{file.name}*"), self._artifact_root):
            if old is not None and old.exists() and not old.name.endswith(".lock"):
                old.rename(aside / old.name)

    def _experiment_id(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        experiment = mlflow_client.find_experiment(client, self._uri, self._experiment)
        if experiment is not None:
            return experiment
        root = self._artifact_root
        try:
            return client.create_experiment(
                self._experiment, artifact_location=None if root is None else str(root.resolve())
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment_id(client)  # another process was a moment earlier

    def _search(self, key: RunKey) -> Run | None:
        """Return the earliest run of this key; None without one."""
        client, experiment = self._store()
        query = query_of(identity(key, self._home))
        runs = client.search_runs(
            [experiment], query, order_by=["attributes.start_time ASC"], max_results=1
        )
        return runs[0] if runs else None

    def _id(self, key: RunKey) -> str:
        run_id = self.run_id(key)
        if run_id is None:
            raise TrackingError(f"{describe(key.name)} of sweep {key.sweep!r} was never opened")
        return run_id

    def _describe(self, run: Run, start: RunStart, tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        client, _ = self._store()
        earlier = run.data.params
        params = mlflow_limits.params(start.params)
        new = (Param(name, value) for name, value in params.items() if name not in earlier)
        for batch in batches(new, TAGS):
            client.log_batch(run.info.run_id, params=batch)
        missing = {name: text for name, text in tags.items() if run.data.tags.get(name) != text}
        self._set_tags(run.info.run_id, missing | mlflow_limits.changed(earlier, params))

    def _set_tags(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        client, _ = self._store()
        entries = (RunTag(name, value) for name, value in values.items())
        for batch in batches(entries, TAGS):
            client.log_batch(run_id, tags=batch)

    @contextmanager
    def _request(self) -> Iterator[tuple[MlflowClient, str]]:
        """Yield the client and the experiment's id; turn MLflow's errors into this package's."""
        connection = self._store()
        with translated(self._uri, self._answers):
            yield connection

    def _answers(self) -> bool:
        """Return whether the store answers a harmless request, after another request failed."""
        if self._connected is None:
            return False
        from mlflow.exceptions import MlflowException

        client, experiment = self._connected
        try:
            client.get_experiment(experiment)
        except MlflowException:
            return False
        return True


def open_store(home: Path, *, experiment: str = "") -> MlflowStore:
    """Return the store of a home's runs (see `resolve_location`), which imports MLflow when used.
    Raises TrackingError where an SQLite database would lose data on the home's file system."""
    place = resolve_location(home, experiment=experiment)
    return MlflowStore(place.uri, place.experiment, place.artifacts, home=home_id(home))


def _input(dataset: DatasetInput) -> MlflowInput:
    """Return a data set as MLflow's MetaDataset makes an input of it, without its imports."""
    from mlflow.entities import Dataset, InputTag
    from mlflow.entities import DatasetInput as MlflowInput

    remote = dataset.source.startswith(("http://", "https://"))
    return MlflowInput(
        dataset=Dataset(
            name=dataset.name,
            digest=dataset.digest,
            source_type="http" if remote else "local",
            source=json.dumps({"url" if remote else "uri": dataset.source}),
        ),
        tags=[InputTag("mlflow.data.context", dataset.context)],
    )


def _signed(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with a digest of the description, to tell it from one that a user writes."""
    if DESCRIPTION not in tags:
        return dict(tags)
    return {**tags, DESCRIBED: _digest_of(tags[DESCRIPTION])}


def _is_described(tags: Mapping[str, str]) -> bool:
    """Return whether somebody else has written the description of a run with these tags."""
    own = tags.get(DESCRIPTION, "")
    return bool(own) and tags.get(DESCRIBED) != _digest_of(own)


def _foreign(tags: Mapping[str, str]) -> dict[str, str]:
    """Return those of a run's tags that somebody else has given it."""
    own = {name: text for name, text in tags.items() if not name.startswith(("carft.", "mlflow."))}
    return own | ({DESCRIPTION: tags[DESCRIPTION]} if _is_described(tags) else {})


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _linked(tags: Mapping[str, str], experiment: str, run_id: str) -> Mapping[str, str]:
    """Return tags with a description's links leading to MLflow's pages of the artifacts."""
    if DESCRIPTION not in tags:
        return tags

    def address(link: re.Match[str]) -> str:
        image, text, name = link.groups()
        page = artifact_source(run_id, name) if image else run_page(experiment, run_id, name)
        return f"{image}[{text}]({page})"

    description = without_remote_content(tags[DESCRIPTION])
    return {**tags, DESCRIPTION: _LINK.sub(address, description)}
