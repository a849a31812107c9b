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

from tracking.base import ServiceUnreachable, TrackingError
from tracking.where import without_password

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SECONDS = 5.0


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
        return
    parts = urlsplit(uri)
    port = _PORTS.get(parts.scheme.partition("+")[0])
    if port is not None and parts.hostname:
        _check_port(uri, parts.hostname, parts.port or port)


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


def _check_port(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        raise ServiceUnreachable(
            f"no database answers at {without_password(uri)} ({host}:{port}): {error}"
        ) from None
