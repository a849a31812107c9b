"""Databases by their SQLAlchemy URLs: what they hold, and why one cannot be used."""

from __future__ import annotations

import logging
import re
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import without_password

if TYPE_CHECKING:
    from sqlalchemy import URL

logger = logging.getLogger(__name__)

SECONDS = 5
"""Time limit for a server to accept a connection."""
_PORT = 5432
_SHORTEST = 3
"""Least length of a password that is removed from texts: shorter ones occur by chance."""
# Without these a network that swallows packets would be noticed after a quarter of an hour.
_OPTIONS: Mapping[str, int] = {
    "connect_timeout": SECONDS,
    "keepalives_idle": 30,
    "tcp_user_timeout": 30_000,
}
_CREDENTIALS = re.compile(
    r"password authentication failed|no password supplied|role \S+ does not exist|no pg_hba\.conf"
)
_SETUP = re.compile("does not exist|permission denied")
"""What a driver says of a missing database or right, for which it is no use to wait."""


@dataclass(frozen=True)
class Database:
    """A database whose URL an environment variable holds."""

    uri: str
    """The database's SQLAlchemy URL."""
    what: str
    """Its name in messages: `Optuna's database`, `MLflow's database`."""
    variable: str
    """Name of the environment variable that holds the URL."""

    def __str__(self) -> str:
        return f"{self.what} at {without_password(self.uri)}"


@dataclass(frozen=True)
class DatabaseTables:
    """The tables of a database."""

    tables: frozenset[str]
    revision: str | None
    """Alembic's, by which Optuna and MLflow migrate, in `alembic_version`; None without one."""

    @property
    def is_optunas(self) -> bool:
        """Whether the database has tables that Optuna made."""
        return {"studies", "trials"} <= self.tables

    @property
    def is_mlflows(self) -> bool:
        """Whether the database has tables that MLflow made, of runs or of MLflow's users."""
        return {"experiments", "runs"} <= self.tables or "alembic_version_auth" in self.tables


def parse_url(uri: str, variable: str) -> URL:
    """Parse `uri`, the database URL that the environment variable `variable` holds.

    Raises:
        TrackingError: The URL names no database. The message has no password.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    url = None
    with suppress(ArgumentError, ValueError):
        url = make_url(uri)
    if url is None or url.drivername == "postgres" or re.search(r"[@/\s]", url.host or ""):
        raise TrackingError(
            f"{variable} must be like postgresql://USER:PASSWORD@HOST:5432/DATABASE (not "
            "postgres://); in user and password write @ as %40, : as %3A, / as %2F and % as %25"
        )
    return url


def _is_damaged(file: Path) -> bool:
    """Return whether a file exists and is no SQLite database; a locked database is not damaged."""
    if not file.exists():
        return False
    try:
        # Not read-only: what a killed process has begun to write is rolled back on opening.
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True
    return False


def set_aside_if_damaged(file: Path) -> None:
    """Rename a damaged SQLite file to `NAME.damaged`, so that a new database can be created."""
    if _is_damaged(file):
        aside = file.with_name(f"{file.name}.damaged")
        for suffix in ("-journal", "-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                file.with_name(f"{file.name}{suffix}").replace(f"{aside}{suffix}")
        logger.warning("%s was damaged: it is now %s, and is written anew", file, aside)


def inspect_database(database: Database) -> DatabaseTables:
    """Return which tables a database has, within seconds even if it is unreachable.

    Raises:
        AccessDenied: The user or password is wrong.
        ServiceUnreachable: The database is away, or has no free connection.
        TrackingError: Its URL is invalid; database or driver are missing or damaged; the user has
            no right to its tables.
    """
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    url = parse_url(database.uri, database.variable)
    if url.get_backend_name() == "postgresql" and url.host and "," not in url.host:
        check_host(str(database), url.host, url.port or _PORT, database.variable)
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args=connect_args(url))
        with engine.connect() as connection:
            tables = frozenset(inspect(connection).get_table_names())
            row = None
            if "alembic_version" in tables:
                row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    except (SQLAlchemyError, ImportError) as error:
        raise _translated(database, error) from None
    logger.debug("%s has %d tables", database, len(tables))
    return DatabaseTables(tables, None if row is None else str(row[0]))


def connect_args(url: URL) -> dict[str, int]:
    """Return psycopg's options that limit waiting, but those that `url` sets; {} for other
    drivers."""
    if not url.get_driver_name().startswith("psycopg"):
        return {}
    return {name: value for name, value in _OPTIONS.items() if name not in url.query}


def _translated(database: Database, error: Exception) -> RuntimeError:
    """Return AccessDenied, ServiceUnreachable or TrackingError, without the password, for an error
    of SQLAlchemy or its driver, or a missing driver."""
    from sqlalchemy import exc

    cause = getattr(error, "orig", None) or error
    # Without PostgreSQL's picture of the place in the statement, and its advice.
    text = remove_passwords(str(cause), database.uri).strip().partition("\n")[0]
    if _CREDENTIALS.search(text):
        return AccessDenied(
            f"{database} denied access ({text}): check user and password in {database.variable}"
        )
    passing = exc.OperationalError | exc.InterfaceError | exc.InternalError | exc.TimeoutError
    if isinstance(error, passing) and not _SETUP.search(text):
        return ServiceUnreachable(f"{database} does not answer: {text}")
    if isinstance(error, ImportError):
        text += ' (pip install "carft-sweep[cluster]" brings that of postgresql+psycopg://)'
    return TrackingError(
        f"{database} cannot be used: {text}. Mend that, or name another one in {database.variable}"
    )


def check_host(service: str, host: str, port: int, variable: str) -> None:
    """Connect to a port for a moment, since a driver or client may wait long for lost packets.
    Raises ServiceUnreachable, which says that `variable` names the service."""
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError as error:
        raise ServiceUnreachable(
            f"{service} does not answer: {error}; {variable} names it"
        ) from None


def remove_passwords(text: str, uri: str) -> str:
    """Return `text` without the password of `uri`, and without the credentials of other URLs."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    text = re.sub(r"://[^/@\s]+@", "://", text).replace(uri, without_password(uri))
    match = re.match(r"[\w+.-]+://[^:/@]*:(.+)@", uri)
    try:
        password = str(make_url(uri).password or "")
    except (ArgumentError, ValueError):
        password = ""
    for form in {match[1] if match else "", password, quote_plus(password)}:
        if len(form) >= _SHORTEST:
            text = text.replace(form, "***")
    return text
