"""MLflow's client: environment, reachability, version, database."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import re
import socket
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tracking.database import SECONDS, Database, is_unknown_name, look
from tracking.errors import ServiceUnreachable, TrackingError, UnknownHost
from tracking.location import TRACKING_VARIABLE, is_server, sqlite_file, without_password
from tracking.store.mlflow_errors import store_refuses, translated, uploading

if TYPE_CHECKING:
    from mlflow import MlflowClient


QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # MLflow reads exactly this word
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def stay_private(environ: MutableMapping[str, str] | None = None) -> None:
    """Turn usage reporting off for this process and its children, where the user has not chosen.

    Call it before mlflow, ray or huggingface_hub are imported: they look once.
    """
    chosen = os.environ if environ is None else environ
    for name, value in QUIET.items():
        chosen.setdefault(name, value)


@contextmanager
def quieted(name: str, level: int, environ: Mapping[str, str]) -> Iterator[None]:
    """Set the level of the logger `name` and variables of this process; afterwards as before."""
    logger = logging.getLogger(name)
    old, before = logger.level, {variable: os.environ.get(variable) for variable in environ}
    logger.setLevel(level)
    os.environ.update(environ)
    try:
        yield
    finally:
        logger.setLevel(old)
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value


_SERVER_PORTS = {"http": 80, "https": 443}
_DATABASES = ("postgresql", "mysql", "mssql")


def check_reachable(uri: str) -> None:
    """Raise ServiceUnreachable or TrackingError where MLflow would hang or mislead."""
    if not uri.strip():
        raise TrackingError("the tracking URI is empty; is the variable that it comes from set?")
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise TrackingError(f"{uri} is no tracking URI; for a server write http://{uri}")
    file = sqlite_file(uri)
    if file is not None:
        _check_file(file)
    elif is_server(uri):
        _check_server(uri)
    elif uri.partition(":")[0].partition("+")[0] in _DATABASES:
        _check_database(Database(uri, "MLflow's database", TRACKING_VARIABLE))


def _check_file(file: Path) -> None:
    if not file.exists():
        return
    try:
        # Not read-only: what a killed process has begun to write is rolled back on opening.
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True)
        try:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {row[0] for row in rows}
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise ServiceUnreachable(f"cannot read {file}: {error}") from None
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"{file} is not an SQLite database ({error}): move it away, or set MLFLOW_TRACKING_URI"
        ) from None
    if "studies" in tables and "experiments" not in tables:
        raise TrackingError(
            f"{file} is Optuna's database: MLflow needs one of its own, "
            "name another file in MLFLOW_TRACKING_URI"
        )


def _check_database(database: Database) -> None:
    if look(database).is_optunas:
        raise TrackingError(
            f"{database} is Optuna's: MLflow needs one of its own, name another one in "
            f"{database.variable}"
        )


def _check_server(uri: str) -> None:
    """MLflow's client waits half a minute for one that swallows packets."""
    parts = urlsplit(uri)
    port = parts.port or _SERVER_PORTS.get(parts.scheme)
    if not parts.hostname or port is None:
        return
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return  # the proxy knows the host, we need not
    place = without_password(uri)
    try:
        socket.create_connection((parts.hostname, port), timeout=SECONDS).close()
    except OSError as error:
        if is_unknown_name(error):
            raise UnknownHost(
                f"MLflow at {place} is on a host that nobody knows by this name from here: see to "
                f"{TRACKING_VARIABLE}"
            ) from None
        raise ServiceUnreachable(f"MLflow at {place} does not answer: {error}") from None


PROBE_SECONDS = 5.0
"""That a server may take for an answer."""
_FOLDER = "carft-sweep-doctor"
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    text: str

    def json(self) -> Any:
        """Return the body as JSON. Raises ValueError."""
        return json.loads(self.text)


def ask(uri: str, path: str) -> Answer:
    """Request a path as MLflow's client does, with its credentials, certificates and proxies.

    Raises ServiceUnreachable when nothing answers within SECONDS, TrackingError when TLS fails.
    """
    stay_private()
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    credentials: Any = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
    try:
        answer: Any = http_request(  # type: ignore[no-untyped-call]
            credentials, path, "GET", max_retries=0, timeout=PROBE_SECONDS, raise_on_status=False
        )
    except MlflowException as error:
        raise _unanswered(uri, str(error.message)) from None
    return Answer(answer.status_code, answer.text)


def _unanswered(uri: str, text: str) -> RuntimeError:
    place = without_password(uri)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return TrackingError(
            f"the certificate of {place} is not trusted here: MLFLOW_TRACKING_SERVER_CERT_PATH "
            "names the file of the authority that signed it"
        )
    if "SSLError" in text:
        return TrackingError(f"{place} does not speak TLS as https:// asks for; is it http://?")
    if "timed out" in text:
        return ServiceUnreachable(f"MLflow at {place} does not answer within {PROBE_SECONDS:g} s")
    return ServiceUnreachable(f"MLflow at {place} does not answer: {text[:300]}")


def server_version(uri: str) -> str | None:
    """The version that a server tells of itself; None where it tells none. Raises as `ask` does."""
    answer = ask(uri, "/version")
    found = re.fullmatch(r"\d+\.\d+(\.\S+)?", answer.text.strip())
    return found[0] if answer.status == 200 and found else None


def client_version() -> str:
    """Of the installed MLflow."""
    from importlib.metadata import version

    return version("mlflow")


def release(version: str) -> tuple[int, ...]:
    """Major and minor, by which two versions are compared."""
    return tuple(int(part) for part in version.split(".")[:2])


def latest_schema() -> str:
    """The revision of a database's tables that the installed MLflow wants."""
    stay_private()
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def try_artifacts(uri: str, location: str) -> bool:
    """Write a small file below an experiment's `location`, read it, and remove it; no run is made.

    False when it is still there: who may write need not be let delete. The next one of this user
    and machine then takes its place. Raises ServiceUnreachable or TrackingError where the store
    refuses.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    who = f"{getpass.getuser()}@{socket.gethostname()}".encode()
    place = f"{location.rstrip('/')}/{_FOLDER}-{hashlib.sha256(who).hexdigest()[:8]}"
    written = uuid.uuid4().hex
    with _impatient(), translated(uri), uploading(uri), tempfile.TemporaryDirectory() as folder:
        store: Any = get_artifact_repository(place, tracking_uri=uri)
        file, back = Path(folder, "tried.txt"), Path(folder, "back")
        file.write_text(written, encoding="utf-8")
        back.mkdir()
        store.log_artifact(str(file))
        read = Path(store.download_artifacts(file.name, str(back))).read_text(encoding="utf-8")
        if read != written:
            raise TrackingError(f"the artifact store gives back other than it got: {location}")
        return _removed(store)


def _removed(store: Any) -> bool:
    """Whether its files are gone: False where this user may not delete."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    try:
        store.delete_artifacts()
    except (HTTPError, MlflowException) as error:
        if "403" in str(error):
            return False
        raise
    return True


@contextmanager
def _impatient() -> Iterator[None]:
    """MLflow tries again for minutes, and shows a bar, unless told otherwise."""
    before = {name: os.environ.get(name) for name in _IMPATIENT}
    os.environ.update(_IMPATIENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


WRITTEN_BY = "carft.written_by"
"""A tag of the experiment: the version of MLflow that wrote to it last."""


def check_version(uri: str) -> None:
    """Ask a server for its version, and wait a few seconds for it.

    Raises TrackingError where its major version is another than ours or its certificate is not
    trusted, ServiceUnreachable where it says nothing. Whatever else it answers is seen to by the
    next request.
    """
    if urlsplit(uri).scheme not in ("http", "https"):
        return  # Databricks has no version of its own
    theirs, ours = server_version(uri), client_version()
    if theirs is not None and release(theirs)[0] != release(ours)[0]:
        raise TrackingError(
            f"MLflow at {without_password(uri)} is version {theirs}, and here is {ours}: their "
            f"major versions must be the same; upgrade the server, after a copy of its database, "
            f"or install mlflow {release(theirs)[0]} here, where carft-sweep takes it"
        )


def check_rights(client: MlflowClient, experiment: str) -> None:
    """Write something harmless, since to read an experiment is allowed to many more.

    Raises MLflow's own errors.
    """
    from mlflow.version import VERSION

    client.set_experiment_tag(experiment, WRITTEN_BY, f"mlflow {VERSION}")


def check_artifacts(client: MlflowClient, uri: str, experiment: str) -> None:
    """List the experiment's artifacts where the server keeps them.

    Raises ServiceUnreachable where its store is not there.
    """
    from mlflow.artifacts import list_artifacts
    from mlflow.exceptions import MlflowException

    place = client.get_experiment(experiment).artifact_location
    if not place.startswith("mlflow-artifacts:"):
        return  # the client's own way to the store is seen to when the first file takes it
    try:
        list_artifacts(artifact_uri=place, tracking_uri=uri)
    except (MlflowException, OSError) as error:
        raise store_refuses(uri, str(error)) from None
