"""Sweeps and runs read back from MLflow."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args
from urllib.parse import quote, unquote, urlsplit

from carft_sweep.regular_files import read_regular
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.comparison.runs import (
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
from carft_sweep.tracking.comparison.spec import ComparisonSpec, read_spec
from carft_sweep.tracking.errors import TrackingError, unknown_name
from carft_sweep.tracking.location import (
    EXPERIMENT,
    home_folder,
    is_server,
    sqlite_file,
    without_password,
)
from carft_sweep.tracking.store import mlflow_limits, mlflow_store
from carft_sweep.tracking.store.base import VARIED
from carft_sweep.tracking.store.mlflow_client import connect_to_read, find_experiment, get
from carft_sweep.tracking.store.mlflow_errors import translated

if TYPE_CHECKING:
    from mlflow.entities import Run


logger = logging.getLogger(__name__)

_HOME = 8
"""Characters of a home's id that are shown."""
_STATES: Mapping[str, State] = {state: state for state in get_args(State)}
_NAMED = 3
"""Runs that a warning names."""
_SHOWN = 20
"""Characters of a tag that a message shows."""


@dataclass(frozen=True)
class ServedRun:
    """A run on a server, its tags and parameters as text."""

    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    artifacts: str = ""
    """URI of the folder of its files."""

    @property
    def digest(self) -> str:
        """The training digest; empty of a sweep's own run."""
        return self.tags.get("carft.run", "")

    @property
    def state(self) -> State:
        """As its driver reported it last."""
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
        """The name in its file."""
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
        """Return plain data for JSON and for a list."""
        try:
            begun = f"{datetime.fromtimestamp(self.started / 1000, UTC):%Y-%m-%d %H:%M}"
        except (ValueError, OverflowError, OSError, TypeError):
            begun = "unknown"  # a server takes any number
        return {
            "sweep": self.place,
            "name": self.name,
            "home": self.home,
            "state": self.state,
            "begun": begun,
            "user": self.run.tags.get("mlflow.user", "unknown"),
            "run_id": self.run_id,
        }

    def line(self) -> str:
        """Write it as a line for people."""
        plain = self.as_dict()
        return f"{self.place}  {self.state}, begun {plain['begun']} UTC by {plain['user']}"


def find(sweeps: Sequence[ServedSweep], name: str) -> ServedSweep:
    """Find the sweep of a name, or of `NAME@HOME` where several homes have one.

    Raises TrackingError that lists them, or suggests the nearest name.
    """
    bare_name, _, home = name.partition("@")
    named = [sweep for sweep in sweeps if sweep.name == bare_name]
    of_home = [sweep for sweep in named if sweep.home.startswith(home)]
    if len(of_home) == 1:
        return of_home[0]
    if not named:
        raise TrackingError(
            unknown_name("sweep", bare_name, sorted({sweep.name for sweep in sweeps}))
        )
    each = "\n".join(f"  {sweep.line()}" for sweep in named)
    if not of_home:
        raise TrackingError(f"no home {home!r} has a sweep {bare_name!r}; there are:\n{each}")
    raise TrackingError(f"{len(of_home)} homes have a sweep {bare_name!r}; say which:\n{each}")


def read_part(
    sweep: ServedSweep,
    runs: Mapping[str, ServedRun],
    settings: Settings | None,
    results: Mapping[str, Result],
    name: str,
    unread: Mapping[str, str] | None = None,
) -> SweepRuns:
    """Make a part, under `name`, of the runs of a sweep and of the files that were there.

    Finished runs without a result are left out, with a warning, and so are those of which something
    cannot be read; `unread` has them by digest, and why, "" for the sweep's own file. While the
    sweep runs, its own list of runs lags behind them: their tags say their states, and which have
    begun since.
    """
    is_running = sweep.state == "running"
    reasons = dict(unread or {})
    if settings is not None and str(settings.generation) != sweep.generation:
        logger.debug("%s: %s is of generation %s", sweep.place, SETTINGS, settings.generation)
        settings = None
    records = [] if settings is None else list(settings.records)
    if is_running:
        records = [
            replace(record, state=runs[record.digest].state) if record.digest in runs else record
            for record in records
        ]
    if settings is None or is_running:
        listed = {record.digest for record in records}
        for digest, run in runs.items():
            generation = run.tags.get("carft.generation", sweep.generation)
            if digest not in listed and generation == sweep.generation:
                try:
                    records.append(_begun(run, results.get(digest)))
                except ValueError as error:
                    reasons[digest] = str(error)
    records = [_with_result(record, results.get(record.digest)) for record in records]
    warnings = []
    unread_settings = reasons.pop("", None)
    if settings is None and runs:
        why = unread_settings or "it has not ended"
        if unread_settings is None and not is_running:
            why = (
                f"its {SETTINGS} is not at {sweep.run.artifacts}, where the server says, or is of "
                "an earlier generation"
            )
        warnings.append(f"of {sweep.name} only the runs that have begun are known: {why}")
    for record in records:
        if record.state == "done" and record.digest not in results:
            reasons.setdefault(record.digest, f"no {RESULT} on the server")
    if reasons:
        shown = [f"{digest[:12]} ({why})" for digest, why in sorted(reasons.items())[:_NAMED]]
        more = ", ..." if len(reasons) > _NAMED else ""
        count = "1 run is" if len(reasons) == 1 else f"{len(reasons)} runs are"
        warnings.append(f"{count} left out of {sweep.name}: {', '.join(shown)}{more}")
    return SweepRuns(
        sweep=name,
        records=[record for record in records if record.digest not in reasons],
        spec=_spec(sweep),
        fields={digest: result.fields for digest, result in results.items()},
        warnings=tuple(warnings),
    )


def _with_result(record: RunRecord, result: Result | None) -> RunRecord:
    """Add what was measured, of the merges that the record names."""
    if result is None:
        return replace(record, metrics={}, merges={}, facts={})
    merges = {label: each for label, each in result.merges.items() if label in record.merges}
    return replace(record, metrics=result.metrics, merges=merges, facts=result.facts)


def _begun(run: ServedRun, result: Result | None) -> RunRecord:
    """Make the record of a run that its sweep has not listed yet from its tags and parameters.

    Raises ValueError for a tag that no sweep of ours has set.
    """
    role = run.tags.get("carft.role", "trial")
    if role not in get_args(Role):
        raise ValueError(f"its role is {role[:_SHOWN]!r}")
    return RunRecord(
        algorithm=run.params.get("algorithm", "unknown"),
        params=_params(run) if result is None else result.params,
        seed=_number(run.params, "seed"),
        digest=run.digest,
        state=run.state,
        role=cast(Role, role),
        trial=_number(run.tags, "carft.trial"),
        untrained=run.tags.get(TRAINS) == "false",
        merges={} if result is None else result.merges,
    )


def _number(texts: Mapping[str, str], name: str) -> int | None:
    text = texts.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,12}", text):
        raise ValueError(f"its {name} is {text[:_SHOWN]!r}")
    return int(text)


def _params(run: ServedRun) -> dict[str, Scalar]:
    """Parse the parameters that the sweep varies, as `mlflow_limits.param` writes them.

    Raises ValueError for a list of them that is none.
    """
    text = run.tags.get(VARIED, "[]")
    varied = _parsed(text)
    if not isinstance(varied, list):
        raise ValueError(f"its tag {VARIED} is {text[:_SHOWN]!r}")
    params: dict[str, Scalar] = {}
    for name in map(str, varied):
        text = run.params.get(mlflow_limits.name(name), "null")
        value = _parsed(text)
        params[name] = text if isinstance(value, (dict, list)) else value
    return params


def _parsed(text: str) -> Any:
    """Parse JSON; anything else is a text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _spec(sweep: ServedSweep) -> ComparisonSpec:
    try:
        return read_spec(sweep.run.tags.get(RULE, ""))
    except TrackingError as error:
        raise TrackingError(f"{sweep.name}, tag {RULE}: {error}") from None


THREADS = 8
MOST = 1 << 26
"""Bytes of a file that are read."""
_CHUNK = 1 << 16
_STREAM = {"stream": True, "allow_redirects": False, "timeout": 30.0}
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
"""Where a server hands out what it keeps."""


class MlflowReader:
    """Reader of one experiment of an MLflow server or database.

    Raises:
        ServiceUnreachable: Nothing answers.
        TrackingError: The place cannot be used, or has no such experiment.
    """

    def __init__(self, uri: str, experiment: str = EXPERIMENT) -> None:
        self._uri = uri
        self._client = connect_to_read(uri)
        with translated(uri):
            experiment_id = find_experiment(self._client, uri, experiment)
            if experiment_id is None:
                names = [each.name for each in self._client.search_experiments()]
                text = unknown_name("experiment", experiment, names)
                raise TrackingError(f"{without_password(uri)}: {text} See --experiment.")
        self._experiment = experiment_id

    def sweeps(self) -> list[ServedSweep]:
        """List every sweep in the order in which they were begun."""
        # An answer that was lost may have left a second run of a sweep: the first one is meant.
        first: dict[tuple[str, str], ServedSweep] = {}
        for run in self._search({"carft.kind": "sweep"}):
            if "carft.sweep" not in run.data.tags:
                continue  # somebody else's
            sweep = ServedSweep(_plain(run), run.info.run_id, run.info.start_time)
            first.setdefault((sweep.name, sweep.home), sweep)
        return list(first.values())

    def part(self, sweep: ServedSweep, name: str | None = None) -> SweepRuns:
        """Read a sweep's runs and how it judges, under `name` (its own)."""
        runs: dict[str, ServedRun] = {}
        # Beside them the sweep has runs that summarise its arms: these are computed anew.
        children = {"mlflow.parentRunId": sweep.run_id, "carft.kind": "run"}
        for run in map(_plain, self._search(children)):
            if run.digest:
                runs.setdefault(run.digest, run)
        with ThreadPoolExecutor(THREADS) as pool:
            files = [*pool.map(self._kept, (sweep.run, *runs.values()))]
        texts = dict(zip(("", *runs), files, strict=True))
        unread = {digest: why for digest, (_, why) in texts.items() if why}
        settings, results = read_settings(texts.pop("")[0] or ""), {}
        for digest, (text, _) in texts.items():
            if text is not None:
                result = read_result(text)
                if result is None:
                    unread[digest] = f"{RESULT} is not one"
                else:
                    results[digest] = result
        return read_part(sweep, runs, settings, results, name or sweep.name, unread)

    def _kept(self, run: ServedRun) -> tuple[str | None, str]:
        """Read a run's result, or the sweep's list of runs; return it, or why it cannot be read."""
        name = RESULT if run.digest else SETTINGS
        try:
            return self._text(run.artifacts, name), ""
        except (TrackingError, ValueError, OSError) as error:
            return None, f"{name}: {getattr(error, 'strerror', None) or error}"

    def _text(self, place: str, name: str) -> str | None:
        """Read a file of a run, whose files are at `place` as the run says; None when it is gone.

        Whoever wrote the run says so, and must not choose what is read: a server hands out what
        it keeps itself, and beside a database the home's own folder is read. Raises TrackingError,
        ValueError or OSError for a place elsewhere, and for what is no text, or a larger one.
        """
        if not is_server(self._uri):
            return _text_in(place, name, self._roots())
        parts = urlsplit(place)
        if parts.scheme != "mlflow-artifacts" or parts.netloc or ".." in parts.path.split("/"):
            raise TrackingError(f"{place} is not kept by the server itself")
        path = quote(f"{_ARTIFACTS}/{parts.path.strip('/')}/{name}")
        with closing(get(self._uri, path, **_STREAM)) as response:
            if response.status_code == HTTPStatus.NOT_FOUND:
                return None
            if response.status_code != HTTPStatus.OK:
                raise TrackingError(f"the server answers {response.status_code}")
            content = b""
            for chunk in response.iter_content(_CHUNK):
                content += chunk
                if len(content) > MOST:
                    raise TrackingError(f"at most {MOST} bytes are read")
        return content.decode()

    def _roots(self) -> list[Path]:
        """Return where a database's runs may have their files: in its home, or in this one."""
        file = sqlite_file(self._uri)
        homes = [home_folder(None), *([] if file is None else [file.parent])]
        return [(home / "mlartifacts").resolve() for home in homes]

    def _search(self, tags: Mapping[str, str]) -> list[Run]:
        with translated(self._uri):
            return mlflow_store.search_runs(self._client, self._experiment, tags)


def _text_in(place: str, name: str, roots: Sequence[Path]) -> str | None:
    """Read a file in a folder below one of `roots`, to which no link may lead elsewhere."""
    parts = urlsplit(place)
    if parts.scheme not in ("", "file") or parts.netloc:
        raise TrackingError(f"{place} is not beside the database")
    file = Path(unquote(parts.path) if parts.scheme else place, name).resolve()
    if not any(file.is_relative_to(root) for root in roots):
        raise TrackingError(f"{place} is not beside the database, in {roots[-1]}")
    try:
        return read_regular(file, MOST).decode()
    except FileNotFoundError:
        return None


def _plain(run: Run) -> ServedRun:
    return ServedRun(
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        artifacts=run.info.artifact_uri,
    )


def read_sweeps(uri: str, experiment: str | None, sweeps: Sequence[str]) -> list[SweepRuns]:
    """Read sweeps by their names, or `NAME@HOME`, from a server or database."""
    reader = MlflowReader(uri, experiment or EXPERIMENT)
    every = reader.sweeps()
    return [reader.part(find(every, name), name) for name in dict.fromkeys(sweeps)]
