"""Sweeps and runs read back from MLflow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from tracking.comparison.compare import Comparison
from tracking.comparison.pooling import RunFilter, SweepRuns, compare_sweeps
from tracking.comparison.runs import (
    HAS_RESULT,
    HAS_SETTINGS,
    RESULT,
    RULE,
    SETTINGS,
    TRAINS,
    Result,
    Role,
    RunRecord,
    Scalar,
    Settings,
    State,
    read_result,
    read_settings,
)
from tracking.comparison.spec import REFERENCE, USUAL, ComparisonSpec, agreed, read_spec
from tracking.errors import ServiceUnreachable, TrackingError, unknown
from tracking.location import EXPERIMENT, home_folder, sqlite_file, where, without_password
from tracking.report.html import show_in_notebooks
from tracking.store import mlflow_store
from tracking.store.mlflow_client import check_reachable, stay_private
from tracking.store.mlflow_errors import deleted_experiment, translated

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


_HOME = 8
"""Characters of a home's id that are shown."""
_UNMERGED = ("id/", "ood/", "gap/", "hmean/", "gain/", "context/")
"""What metrics of a run's own model begin with; a merged one's are below its merge's name."""
_STATES: Mapping[str, State] = {
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
    "pruned": "pruned",
    "running": "running",
}
_FACTS: Mapping[str, str] = {"data": "carft.data", "model": "carft.weights"}


@dataclass(frozen=True)
class ServedRun:
    """One run of a server: tags and parameters as text, the last value of each metric."""

    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: str = ""
    """Where its files lie."""

    @property
    def digest(self) -> str:
        """The training digest; empty of a sweep's own run."""
        return self.tags.get("carft.run", "")

    @property
    def state(self) -> State:
        """As its driver told it last."""
        return _STATES.get(self.tags.get("carft.state", ""), "missing")


@dataclass(frozen=True)
class ServedSweep:
    """A sweep's own run."""

    run: ServedRun
    run_id: str
    started: int
    """Milliseconds since the Unix epoch."""

    @property
    def name(self) -> str:
        """As its file says."""
        return self.run.tags["carft.sweep"]

    @property
    def home(self) -> str:
        """The id of the home that ran it."""
        return self.run.tags.get("carft.home", "")

    @property
    def state(self) -> str:
        """`running`, `done`, `failed` or `interrupted`."""
        return self.run.tags.get("carft.state", "unknown")

    @property
    def generation(self) -> str | None:
        """The newest one."""
        return self.run.tags.get("carft.generation")

    @property
    def place(self) -> str:
        """`kl_weight@1f3a9c02`: its name with the home, as `find` takes it."""
        return f"{self.name}@{self.home[:_HOME]}"

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON and for a list."""
        begun = datetime.fromtimestamp(self.started / 1000, UTC)
        return {
            "sweep": self.place,
            "name": self.name,
            "home": self.home,
            "state": self.state,
            "begun": begun.strftime("%Y-%m-%d %H:%M"),
            "user": self.run.tags.get("mlflow.user", "unknown"),
            "run_id": self.run_id,
        }

    def line(self) -> str:
        """The same for people."""
        told = self.as_dict()
        return f"{self.place}  {self.state}, begun {told['begun']} UTC by {told['user']}"


def find(sweeps: Sequence[ServedSweep], name: str) -> ServedSweep:
    """The sweep of a name, or of `NAME@HOME` where several homes have one.

    Raises TrackingError that lists them, or says the nearest name.
    """
    wanted, _, home = name.partition("@")
    named = [sweep for sweep in sweeps if sweep.name == wanted]
    ours = [sweep for sweep in named if sweep.home.startswith(home)]
    if len(ours) == 1:
        return ours[0]
    if not named:
        raise TrackingError(unknown("sweep", wanted, sorted({sweep.name for sweep in sweeps})))
    each = "\n".join(f"  {sweep.line()}" for sweep in named)
    if not ours:
        raise TrackingError(f"no home {home!r} has a sweep {wanted!r}; there are:\n{each}")
    raise TrackingError(f"{len(ours)} homes have a sweep {wanted!r}; say which:\n{each}")


def read_part(
    sweep: ServedSweep,
    runs: Mapping[str, ServedRun],
    settings: Settings | None,
    results: Mapping[str, Result],
    name: str,
) -> SweepRuns:
    """The runs of a sweep, by digest, with the files that were there, under `name`.

    What has no result is taken as far as tags and metrics tell, and a warning says so.
    """
    if settings is not None and str(settings.generation) != sweep.generation:
        settings = None  # of an earlier one
    known = _Known(sweep, runs, settings, results)
    spec, said = _spec(sweep)
    records = list(known.records())
    return SweepRuns(
        sweep=name,
        records=records,
        spec=spec,
        fields={digest: found.fields for digest, found in results.items()},
        warnings=(*said, *known.warnings(records)),
    )


@dataclass(frozen=True)
class _Known:
    """What a server knows of the runs of a sweep."""

    sweep: ServedSweep
    runs: Mapping[str, ServedRun]
    settings: Settings | None
    results: Mapping[str, Result]

    @property
    def is_running(self) -> bool:
        """Whether the list of runs may lag behind them."""
        return self.sweep.state == "running"

    def records(self) -> Iterator[RunRecord]:
        """As the sweep's own list says; while it runs, also what has begun since."""
        listed = () if self.settings is None else self.settings.records
        for record in listed:
            yield self._measured(record, list(record.merges))
        if self.settings is not None and not self.is_running:
            return
        known = {record.digest for record in listed}
        for digest, run in self.runs.items():
            if digest not in known and self._is_current(run):
                found = self.results.get(digest)
                labels = [] if found is None else list(found.merges)
                yield self._measured(_told(run, found), labels)

    def warnings(self, records: Sequence[RunRecord]) -> tuple[str, ...]:
        """What was not there to be read of them."""
        said = []
        if self.settings is None and self.runs:
            lost = HAS_SETTINGS in self.sweep.run.tags and not self.is_running
            why = (
                f"its {SETTINGS} is not at {self.sweep.run.artifacts}, where the "
                "server says, or is of an earlier generation"
                if lost
                else "it has not ended, or was tracked by an older version"
            )
            said.append(f"of {self.sweep.name} only the runs that have begun are known: {why}")
        done = {record.digest for record in records if record.state == "done"}
        lacking = len(done - self.results.keys())
        if lacking:
            runs = "run has" if lacking == 1 else "runs have"
            said.append(
                f"{lacking} finished {runs} no {RESULT} on the server: what MLflow's "
                "own metrics tell is taken, without merged models"
            )
        return tuple(said)

    def _measured(self, record: RunRecord, labels: Sequence[str]) -> RunRecord:
        run, found = self.runs.get(record.digest), self.results.get(record.digest)
        state = run.state if run is not None and self.is_running else record.state
        if found is None:
            metrics = {} if run is None else _own_metrics(run)
            facts = {} if run is None else _facts(run)
            return replace(record, state=state, metrics=metrics, merges={}, facts=facts)
        merges = {label: found.merges[label] for label in labels if label in found.merges}
        return replace(record, state=state, metrics=found.metrics, merges=merges, facts=found.facts)

    def _is_current(self, run: ServedRun) -> bool:
        ours = self.sweep.generation
        return run.tags.get("carft.generation", ours) == ours


def _told(run: ServedRun, result: Result | None) -> RunRecord:
    """A run as its tags and parameters tell."""
    seed, trial = run.tags.get("carft.seed", "none"), run.tags.get("carft.trial", "none")
    return RunRecord(
        algorithm=run.tags.get("carft.algorithm", "unknown"),
        params=_params(run) if result is None else result.params,
        seed=int(seed) if seed.isdigit() else None,
        digest=run.digest,
        state=run.state,
        role=cast(Role, run.tags.get("carft.role", "trial")),
        trial=int(trial) if trial.isdigit() else None,
        untrained=run.tags.get(TRAINS) == "false",
    )


def _params(run: ServedRun) -> dict[str, Scalar]:
    apart = ("algorithm", "seed")
    return {name: _parsed(text) for name, text in run.params.items() if name not in apart}


def _parsed(text: str) -> Scalar:
    """A parameter as `limits.param` wrote it."""
    try:
        value: Any = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float, bool)) or value is None else text


def _own_metrics(run: ServedRun) -> dict[str, float]:
    return {name: value for name, value in run.metrics.items() if name.startswith(_UNMERGED)}


def _facts(run: ServedRun) -> dict[str, object]:
    return {name: run.tags[tag] for name, tag in _FACTS.items() if tag in run.tags}


def _spec(sweep: ServedSweep) -> tuple[ComparisonSpec, tuple[str, ...]]:
    text = sweep.run.tags.get(RULE)
    if text is None:
        usual = f"{USUAL.rule.metric}, {USUAL.rule.name}"
        said = f"{sweep.name} does not tell how it chooses: {usual} is taken"
        return USUAL, (f"{said}; see --metric and --selection",)
    return read_spec(text), ()


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

    def part(self, sweep: ServedSweep, name: str | None = None) -> SweepRuns:
        """A sweep's runs and how it judges, under `name` (its own)."""
        runs: dict[str, ServedRun] = {}
        for run in map(_plain, self._search({"mlflow.parentRunId": sweep.run_id})):
            runs.setdefault(run.digest, run)
        with TemporaryDirectory() as folder:
            settings, results = self._files(sweep, runs, Path(folder))
        return read_part(sweep, runs, settings, results, name or sweep.name)

    def _files(
        self, sweep: ServedSweep, runs: Mapping[str, ServedRun], folder: Path
    ) -> tuple[Settings | None, dict[str, Result]]:
        """The list of the sweep's runs, and the results of those that are done."""

        def text(run: ServedRun, name: str, tag: str) -> str | None:
            there = run.tags.get(tag) == name
            return self._text(run.artifacts, name, folder / run.digest) if there else None

        with ThreadPoolExecutor(THREADS) as pool:
            results = pool.map(lambda run: text(run, RESULT, HAS_RESULT), runs.values())
            listed = text(sweep.run, SETTINGS, HAS_SETTINGS)
            found = {
                digest: result
                for digest, told in zip(runs, results, strict=True)
                if told is not None and (result := read_result(told)) is not None
            }
        return None if listed is None else read_settings(listed), found

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
                    mlflow_store.query_of(tags),
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


def load_comparison(
    *sweeps: str,
    home: str | Path | None = None,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    conditions: Sequence[str] = (),
    reference: str = REFERENCE,
    spec: ComparisonSpec | None = None,
) -> Comparison:
    """The comparison of one sweep, or of several as one, as MLflow knows their runs.

    `sweeps` are names, or `NAME@HOME` where several homes on a server have one. The runs are read
    from `tracking_uri`, else from where the runs of `home` (CARFT_HOME, `.carft`) are kept; what
    their folders hold (predictions, curves) is there as long as they lie in the home.
    `conditions` are those of `compare --where`, such as `kl_weight>=0.3`; `reference` is the
    algorithm to compare with; `spec` goes before that of the sweeps. Raises TrackingError
    for an unknown sweep, with the nearest name, and where the sweeps judge differently;
    ServiceUnreachable when the server does not answer.
    """
    if not sweeps:
        raise TypeError("load_comparison needs the name of a sweep")
    parts = _from(tracking_uri, experiment, sweeps) if tracking_uri else _of(home, sweeps)
    texts = [conditions] if isinstance(conditions, str) else conditions
    spec = spec or agreed({part.sweep: part.spec for part in parts})
    spec = spec.model_copy(update={"reference": reference})
    show_in_notebooks()
    return compare_sweeps(parts, spec, chosen=RunFilter.parse(texts))


def _from(uri: str, experiment: str | None, sweeps: Sequence[str]) -> list[SweepRuns]:

    reader = MlflowReader(uri, experiment or EXPERIMENT)
    there = reader.sweeps()
    return [reader.part(find(there, name), name) for name in dict.fromkeys(sweeps)]


def _of(home: str | Path | None, sweeps: Sequence[str]) -> list[SweepRuns]:
    """A home's own sweeps, also on a server that other homes use."""

    folder = home_folder(None if home is None else os.fspath(home))
    place = where(folder)
    reader = MlflowReader(place.uri, place.experiment)
    there, own = reader.sweeps(), _id(folder)
    found = []
    for name in dict.fromkeys(sweeps):
        asked = name if "@" in name or own is None else f"{name}@{own}"
        found.append(_with_folders(reader.part(find(there, asked), name), folder / "runs"))
    return found


def _with_folders(part: SweepRuns, runs: Path) -> SweepRuns:
    """The part with the folders of those of its runs that lie here."""
    records = [
        replace(record, folder=folder) if (folder := runs / record.digest).is_dir() else record
        for record in part.records
    ]
    return replace(part, records=records)


def _id(folder: Path) -> str | None:
    """The home's id, where it has one; none is made for who only reads."""
    try:
        return (folder / "id").read_text().strip()
    except FileNotFoundError:
        return None
