"""MLflow's client: its environment, opening it, and checks before a sweep depends on it."""

from __future__ import annotations

import functools
import getpass
import hashlib
import logging
import os
import re
import shutil
import socket
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from carft_sweep.tracking.database import Database, check_host, inspect_database, remove_passwords
from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import (
    PORTS,
    TrackingLocation,
    is_named,
    is_server,
    source_of,
    sqlite_file,
    stay_private,
    without_password,
)
from carft_sweep.tracking.ownership import is_shared
from carft_sweep.tracking.program import program
from carft_sweep.tracking.store.mlflow_errors import translated, uploading

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.utils.rest_utils import MlflowHostCreds
    from requests import Response


logger = logging.getLogger(__name__)

# One attempt a request, and not for two minutes: when to repeat is the caller's part, and a request
# that MLflow repeats by itself may open a run twice. And no address of each run that ends on
# stdout, which is for results: it costs a request, and shows a password that is in the URI.
_CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_DATABASES = ("postgresql", "mysql", "mssql")


@contextmanager
def quieted(name: str, level: int, environ: Mapping[str, str]) -> Iterator[None]:
    """Within the context, set the level of the logger `name` and variables of this process."""
    quiet = logging.getLogger(name)
    old, before = quiet.level, {variable: os.environ.get(variable) for variable in environ}
    quiet.setLevel(level)
    os.environ.update(environ)
    try:
        yield
    finally:
        quiet.setLevel(old)
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value


def connect(uri: str) -> MlflowClient:
    """Return a client of an existing server or database, within seconds.

    Raises:
        ServiceUnreachable: Nothing answers.
        TrackingError: It cannot be used: no such file, an old schema, another program's database.
    """
    _set_up()
    check_reachable(uri)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise TrackingError(f"there is no MLflow database {file}")
    logger.debug("connecting to MLflow at %s", without_password(uri))
    with _usable(uri):
        from mlflow import MlflowClient

        return MlflowClient(uri)


def create_database(file: Path) -> None:
    """Make a database with MLflow's tables, and move the complete database to `file`. The
    migrations take seconds and cannot be repeated: a process killed among them would leave a
    database that MLflow never opens again."""
    _set_up()
    file.parent.mkdir(parents=True, exist_ok=True)
    for left in file.parent.glob(f".{file.name}.new-*"):  # by a process that was killed here
        shutil.rmtree(left)
    logger.debug("creating MLflow's database %s", file)
    # A name of its own each time: MLflow keeps what it knows of a URI for the process's life.
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.new-", dir=file.parent) as folder:
        new = Path(folder) / file.name
        new.touch(0o666 if is_shared(file.parent) else 0o600)  # SQLite would let nobody else write
        with _usable(f"sqlite:///{file}"):
            from mlflow import MlflowClient

            MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
        new.replace(file)


def _set_up() -> None:
    """Set environment variables that MLflow reads when imported, unless the user has set them."""
    stay_private()
    for name, value in _CLIENT.items():
        os.environ.setdefault(name, value)
    # Only MLflow's warnings, and no tracebacks of database errors: they come as exceptions.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@contextmanager
def _usable(uri: str) -> Iterator[None]:
    """Turn errors of opening MLflow within the context into ServiceUnreachable or TrackingError."""
    try:
        with translated(uri):
            yield
    except (ServiceUnreachable, TrackingError):
        raise
    except Exception as error:  # SQLAlchemy, Alembic and the drivers each have errors of their own
        raise TrackingError(f"MLflow cannot use {without_password(uri)}: {error}") from error


def find_experiment(client: MlflowClient | RestStore, uri: str, name: str) -> str | None:
    """Return the id of an experiment; None if the experiment does not exist. Raises TrackingError
    for a deleted experiment, and MLflow's own errors."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the MLflow experiment {name!r} was deleted, and MLflow keeps its name: restore it "
            f"with `MLFLOW_TRACKING_URI={without_password(uri)} mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}`, or name another one in "
            "MLFLOW_EXPERIMENT_NAME"
        )
    return str(experiment.experiment_id)


def experiment_id(uri: str, name: str) -> str | None:
    """Return the id of an experiment; None if it does not exist. Raises as `connect` does."""
    with translated(uri):
        return find_experiment(connect(uri), uri, name)


def own_file(uri: str, artifacts: Path | None) -> Path | None:
    """Return the file of a home's own database, which lies beside the home's `artifacts`; None for
    a database of several homes, whose artifacts all lie where the first home had its own."""
    file = sqlite_file(uri)
    if file is None or artifacts is None or file.parent.resolve() != artifacts.parent.resolve():
        return None
    return file


def moved_from(uri: str, experiment: str, artifacts: Path | None) -> str | None:
    """Return where a home's own database expects artifacts, if not in `artifacts`: the home was
    moved or copied. None otherwise, or without a database. MLflow stores absolute paths, and would
    write below the old one."""
    file = own_file(uri, artifacts)
    if file is None or artifacts is None or not file.exists():
        return None
    query = "SELECT artifact_location FROM experiments WHERE name = ?"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
            row = database.execute(query, (experiment,)).fetchone()
    except sqlite3.Error:
        return None  # whoever opens it says what is wrong with it
    place = None if row is None else str(row[0]).removeprefix("file://")
    return None if place is None or Path(place) == artifacts.resolve() else place


def refuse_if_moved(place: TrackingLocation) -> None:
    """Raise TrackingError where a home's own database expects artifacts in another place."""
    before = moved_from(place.named, place.experiment, place.artifacts)
    if before is not None and (file := sqlite_file(place.named)) is not None:
        raise TrackingError(
            f"{file} keeps its artifacts in {before}: this home was moved or copied. To record its "
            f"runs anew here: {program()} sync --home {file.parent}"
        )


def check_reachable(uri: str) -> None:
    """Raise ServiceUnreachable where a server or database does not answer, TrackingError for a URI
    that MLflow cannot use and for Optuna's database."""
    if not uri.strip():
        raise TrackingError("the tracking URI is empty; is the variable that it comes from set?")
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise TrackingError(f"{uri} is no tracking URI; for a server write http://{uri}")
    if uri.startswith("file:") or not (":" in uri or uri.startswith("databricks")):
        raise TrackingError(
            f"{uri} is a folder of files, which MLflow no longer keeps up; name a database, such "
            "as sqlite:///mlflow.db, or a server"
        )
    file = sqlite_file(uri)
    if is_server(uri):
        _check_server(uri)
    elif uri.startswith(_DATABASES) or (file is not None and file.exists()):
        database = Database(uri, "MLflow's database", source_of(uri))
        if inspect_database(database).is_optunas:
            raise TrackingError(
                f"{database} is Optuna's: MLflow needs one of its own, name another one in "
                f"{database.variable}"
            )


def _check_server(uri: str) -> None:
    """Raise as `check_host` does for a server, unless a proxy is used for the host."""
    try:
        parts = urlsplit(uri)
        port = parts.port or PORTS.get(parts.scheme)
        if "@" in parts.path:
            raise ValueError
    except ValueError:
        raise TrackingError(
            f"{source_of(uri)} is no address of a server, such as http://mlflow.lab:5000; in a "
            "password write %2F for / and %40 for @"
        ) from None
    behind_proxy = parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")
    if parts.hostname and port is not None and not behind_proxy:
        check_host(f"MLflow at {without_password(uri)}", parts.hostname, port, source_of(uri))


PROBE_SECONDS = 5.0
"""Time limit of a server's answer."""
_FOLDER = "carft-sweep-check"


def host_credentials(uri: str) -> MlflowHostCreds:
    """Return the credentials for requests to a server: those that MLflow has on this machine if
    MLFLOW_TRACKING_URI names the server, else none."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import MlflowHostCreds

    own: MlflowHostCreds = get_default_host_creds(uri)
    if is_named(uri):
        return own
    return MlflowHostCreds(
        uri,
        ignore_tls_verification=own.ignore_tls_verification,
        server_cert_path=own.server_cert_path,
    )


def connect_to_read(uri: str) -> MlflowClient | RestStore:
    """Return a client as `connect` does, for a server with `host_credentials`."""
    client = connect(uri)
    if is_named(uri) or urlsplit(uri).scheme not in ("http", "https"):
        return client
    from mlflow.store.tracking.rest_store import RestStore

    return RestStore(functools.partial(host_credentials, uri))


def get(uri: str, path: str, **options: Any) -> Response:
    """Return the response to a GET request of a path, with the certificates and proxies of MLflow's
    client, and `host_credentials`. `options` are those of `requests`.

    Raises:
        ServiceUnreachable: Nothing answers within PROBE_SECONDS.
        TrackingError: TLS fails.
    """
    _set_up()
    from mlflow.exceptions import MlflowException
    from mlflow.utils.rest_utils import http_request

    settings = {"max_retries": 0, "timeout": PROBE_SECONDS, "raise_on_status": False, **options}
    try:
        response: Response = http_request(host_credentials(uri), path, "GET", **settings)
    except MlflowException as error:
        place, text = without_password(uri), remove_passwords(str(error.message), uri)
        if "WRONG_VERSION_NUMBER" in text:
            raise TrackingError(f"{place} does not speak TLS: write http:// in its place") from None
        if "SSLError" in text or "CERTIFICATE_VERIFY_FAILED" in text:
            raise TrackingError(
                f"TLS with {place} fails: {text[:300]}. MLFLOW_TRACKING_SERVER_CERT_PATH names the "
                "file of an authority that this machine does not know"
            ) from None
        raise ServiceUnreachable(f"MLflow at {place} does not answer: {text[:300]}") from None
    return response


def server_version(uri: str) -> str | None:
    """Return a server's version; None if it names none. Raises as `get` does."""
    answer = get(uri, "/version")
    match = re.fullmatch(r"\d+\.\d+(\.\S+)?", answer.text.strip())
    return match[0] if answer.status_code == 200 and match else None


def release(text: str) -> tuple[int, ...]:
    """Return the major and minor number of a version, with which versions are compared."""
    return tuple(int(part) for part in text.split(".")[:2])


def try_artifacts(uri: str, location: str) -> bool:
    """Write a small file below an experiment's `location`, read and remove it; no run is made.

    Returns:
        Whether the file was removed: a user who may write need not have the right to delete. The
        next file of this user and machine then replaces it.

    Raises:
        ServiceUnreachable, TrackingError: The store rejects the file.
    """
    _set_up()
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from requests import HTTPError

    who = f"{getpass.getuser()}@{socket.gethostname()}".encode()
    place = f"{location.rstrip('/')}/{_FOLDER}-{hashlib.sha256(who).hexdigest()[:8]}"
    text = uuid.uuid4().hex
    with translated(uri), uploading(uri), tempfile.TemporaryDirectory() as folder:
        store: Any = get_artifact_repository(place, tracking_uri=uri)
        file, back = Path(folder, "tried.txt"), Path(folder, "back")
        file.write_text(text, encoding="utf-8")
        back.mkdir()
        store.log_artifact(str(file))
        read = Path(store.download_artifacts(file.name, str(back))).read_text(encoding="utf-8")
        if read != text:
            raise TrackingError(
                f"the artifact store returned another content than was sent: {location}"
            )
        try:
            store.delete_artifacts()
        except (HTTPError, MlflowException) as error:
            if "403" not in str(error):
                raise
            return False
        return True


def check_version(uri: str) -> None:
    """Compare a server's major version with the client's. Raises TrackingError where the versions
    differ or the server's certificate is not trusted, ServiceUnreachable where the server does not
    answer within seconds. Other errors are left to the next request."""
    if urlsplit(uri).scheme not in ("http", "https"):
        return  # Databricks has no version of its own
    server, client = server_version(uri), version("mlflow")
    if server is not None and release(server)[0] != release(client)[0]:
        raise TrackingError(
            f"MLflow at {without_password(uri)} is version {server}, and here is {client}: their "
            f"major versions must be the same; upgrade the server, after a copy of its database, "
            f"or install mlflow {release(server)[0]} here, where carft-sweep takes it"
        )
