"""Whether a tracking URI can be used at all, found out in seconds.

MLflow's own engine tries a database that does not answer for half an hour, and fails on a file
of another kind with a message about migrations.
"""

from __future__ import annotations

import re
import socket
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tracking.base import ServiceUnreachable, TrackingError, UnknownHost
from tracking.databases import SECONDS, Database, is_unknown_name, look
from tracking.where import TRACKING_VARIABLE, is_server, without_password

_SERVER_PORTS = {"http": 80, "https": 443}
_DATABASES = ("postgresql", "mysql", "mssql")


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite URI, None for any other URI or a database in memory."""
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(file) if uri.startswith("sqlite:///") and file not in ("", ":memory:") else None


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
