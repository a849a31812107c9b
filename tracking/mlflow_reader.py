"""Sweeps and runs read back from MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from carft_sweep.regular_files import read_regular
from carft_sweep.tracking.comparison.input_file import COMPARISON_INPUT, read_comparison_input
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.errors import TrackingError, unknown_name
from carft_sweep.tracking.location import (
    EXPERIMENT,
    home_folder,
    is_server,
    sqlite_file,
    without_password,
)
from carft_sweep.tracking.store.mlflow_client import connect_to_read, find_experiment, get
from carft_sweep.tracking.store.mlflow_errors import translated
from carft_sweep.tracking.store.mlflow_store import search_runs

_HOME = 8
"""Number of characters of a home's id that are shown."""


@dataclass(frozen=True)
class ServedSweep:
    """A sweep that is recorded in MLflow, read from the MLflow run that stands for the sweep."""

    tags: Mapping[str, str]
    run_id: str
    started: int
    """Milliseconds since the Unix epoch."""
    artifacts: str = ""
    """URI of the folder of its files."""

    @property
    def name(self) -> str:
        """Name in the sweep's file."""
        return self.tags["carft.sweep"]

    @property
    def home(self) -> str:
        """Id of the home that ran the sweep."""
        return self.tags.get("carft.home", "")

    @property
    def state(self) -> str:
        """The sweep's state: `running`, `done`, `failed`, `interrupted`, or `unknown`."""
        return self.tags.get("carft.state", "unknown")

    @property
    def generation(self) -> str | None:
        """Newest generation of the sweep."""
        return self.tags.get("carft.generation")

    @property
    def place(self) -> str:
        """The sweep's name with its home, as `find` takes it: `kl_weight@1f3a9c02`."""
        return f"{self.name}@{self.home[:_HOME]}"

    def as_dict(self) -> dict[str, object]:
        """Return the sweep as plain data, for JSON and for a list."""
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
            "user": self.tags.get("mlflow.user", "unknown"),
            "run_id": self.run_id,
        }

    def line(self) -> str:
        """Return the sweep as a line of text."""
        plain = self.as_dict()
        return f"{self.place}  {self.state}, begun {plain['begun']} UTC by {plain['user']}"


def find(sweeps: Sequence[ServedSweep], name: str) -> ServedSweep:
    """Return the sweep that `name` means: NAME, or `NAME@HOME` where several homes have one of that
    name. Raises TrackingError, which lists these or suggests the nearest name."""
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


MOST = 1 << 28
"""Largest file that is read, in bytes."""
_CHUNK = 1 << 16
_STREAM = {"stream": True, "allow_redirects": False, "timeout": 30.0}
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
"""Route at which a server hands out the artifacts that it keeps itself."""


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
        """Return every sweep in the order in which they were begun."""
        # An answer that was lost may have left a second run of a sweep: the first one is meant.
        first: dict[tuple[str, str], ServedSweep] = {}
        with translated(self._uri):
            runs = search_runs(self._client, self._experiment, {"carft.kind": "sweep"})
        for run in runs:
            tags, info = dict(run.data.tags), run.info
            if "carft.sweep" not in tags:
                continue  # somebody else's
            sweep = ServedSweep(tags, info.run_id, info.start_time, info.artifact_uri)
            first.setdefault((sweep.name, sweep.home), sweep)
        return list(first.values())

    def part(self, sweep: ServedSweep, name: str) -> SweepRuns:
        """Return a sweep's runs and its comparison rules, under the name `name`. A running sweep is
        read as it was when one of its runs ended last. Raises TrackingError where its file does not
        exist yet, was deleted, or cannot be read."""
        try:
            text = self._text(sweep.artifacts, COMPARISON_INPUT)
            read = None if text is None else read_comparison_input(text, name)
        except (TrackingError, ValueError, OSError) as error:
            why = getattr(error, "strerror", None) or error
            raise TrackingError(f"{sweep.place} cannot be compared: {why}") from None
        is_running = sweep.state == "running"
        if read is None or str(read[0]) != sweep.generation:
            why = (
                "none of its runs has ended yet"
                if is_running
                else f"it has no {COMPARISON_INPUT} at {sweep.artifacts}; sync its home"
            )
            raise TrackingError(f"{sweep.place} cannot be compared: {why}")
        part = read[1]
        if is_running:
            warning = f"{sweep.name} still runs: compared is what it sent when a run ended last"
            part = replace(part, warnings=(warning,))
        return part

    def _text(self, place: str, name: str) -> str | None:
        """Return the text of a run's file `name` at the artifact location `place` that the run
        states; None if deleted.

        The author of the run sets `place`, and must not choose what is read: a server hands out its
        own files only, and beside a database the home's own folder is read. Raises TrackingError,
        ValueError or OSError for a place elsewhere, bytes that are no text, or more than `MOST`.
        """
        if not is_server(self._uri):
            # Of this home and of the database's.
            file = sqlite_file(self._uri)
            homes = [home_folder(None), *([] if file is None else [file.parent])]
            return _text_in(place, name, [(home / "mlartifacts").resolve() for home in homes])
        parts = urlsplit(place)
        if parts.scheme != "mlflow-artifacts" or parts.netloc or ".." in parts.path.split("/"):
            raise TrackingError(f"{place} is not kept by the server itself")
        path = quote(f"{_ARTIFACTS}/{parts.path.strip('/')}/{name}")
        with closing(get(self._uri, path, **_STREAM)) as response:
            if response.status_code == HTTPStatus.NOT_FOUND:
                return None
            if response.status_code != HTTPStatus.OK:
                raise TrackingError(f"the server answers {response.status_code}")
            content = bytearray()
            for chunk in response.iter_content(_CHUNK):
                content += chunk
                if len(content) > MOST:
                    raise TrackingError(f"at most {MOST} bytes are read")
        return content.decode()


def _text_in(place: str, name: str, roots: Sequence[Path]) -> str | None:
    """Return the text of file `name` in `place`, a path or file URI; None if missing. Raises
    TrackingError where the file, links resolved, is below none of `roots`."""
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


def read_sweeps(uri: str, experiment: str | None, sweeps: Sequence[str]) -> list[SweepRuns]:
    """Read the runs of `sweeps`, each NAME or `NAME@HOME`, from the server or database `uri`."""
    reader = MlflowReader(uri, experiment or EXPERIMENT)
    every = reader.sweeps()
    return [reader.part(find(every, name), name) for name in dict.fromkeys(sweeps)]
