"""Databases by their URLs: connecting in seconds, and errors in plain words."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote_plus

from tracking.errors import NotLetIn, ServiceUnreachable, TrackingError, UnknownHost
from tracking.location import is_server, without_password

if TYPE_CHECKING:
    from sqlalchemy import URL


PORTS: Mapping[str, int] = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_HERE = {"", "localhost", "127.0.0.1", "::1"}
_KINDS = {"mariadb": "mysql", "postgres": "postgresql"}
_SHORTEST = 3
"""A password of fewer characters is in every text by chance."""


class Identity(NamedTuple):
    """Equal for two URLs that lead to one database; says nothing of who opens it, and how."""

    kind: str
    """`postgresql`, `mysql`, `sqlite`, ..."""
    hosts: tuple[str, ...]
    """`localhost` is this machine, by whatever name or socket; none for SQLite."""
    port: int
    database: str
    """SQLite: the path of the file."""

    def __str__(self) -> str:
        if self.kind == "sqlite":
            return f"sqlite:///{self.database}"
        return f"{self.kind}://{','.join(self.hosts)}:{self.port}/{self.database}"


def parsed(uri: str, variable: str) -> URL:
    """A database's URL, taken apart. Raises TrackingError, without a password, where it is none.

    `variable` is where it comes from.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    wanted = f"{variable} is to be like postgresql://USER:PASSWORD@HOST:5432/DATABASE"
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        raise TrackingError(f"{wanted}; it is no URL of a database") from None
    if url.drivername == "postgres":
        raise TrackingError(f"{wanted}: SQLAlchemy takes postgresql://, not postgres://")
    if url.host is not None and re.search(r"[@/\s]", url.host):
        raise TrackingError(
            f"{wanted}; in a user's name or password write @ as %40, : as %3A, / as %2F and % as "
            "%25"
        )
    return url


def identity(uri: str) -> Identity | None:
    """The database that a URL names; None where it names none."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if is_server(uri):
        return None
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        return None
    kind = url.get_backend_name()
    kind = _KINDS.get(kind, kind)
    if kind == "sqlite":
        file = (url.database or ":memory:").removeprefix("file:")
        return Identity(kind, (), 0, str(Path(file).resolve()))
    known = os.environ if kind == "postgresql" else {}  # those of libpq
    named = _all(url, "host") or ([url.host] if url.host else [known.get("PGHOST", "")])
    hosts, ports = _taken_apart(",".join(named))
    port = url.port or next(iter([*_all(url, "port"), *ports]), None) or known.get("PGPORT")
    user = url.username or next(iter(_all(url, "user")), "") or known.get("PGUSER", "")
    database = url.database or next(iter(_all(url, "dbname")), "") or known.get("PGDATABASE", user)
    return Identity(kind, hosts, int(port or PORTS.get(kind, 0)), database)


def scrubbed(text: str, uri: str) -> str:
    """A text of somebody else's without the password of the URL, and without that of any other."""
    text = re.sub(r"://[^/@\s]+@", "://", text).replace(uri, without_password(uri))
    found = re.match(r"[\w+.-]+://[^:/@]*:(.+)@", uri)
    secret = found[1] if found else ""
    for form in {secret, _unquoted(uri), quote_plus(_unquoted(uri))}:
        if len(form) >= _SHORTEST:
            text = text.replace(form, "***")
    return text


def _unquoted(uri: str) -> str:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return str(make_url(uri).password or "")
    except (ArgumentError, ValueError):
        return ""


def _all(url: URL, option: str) -> list[str]:
    """What the query says of an option, which may come several times."""
    found = url.query.get(option, ())
    return [found] if isinstance(found, str) else list(found)


def _taken_apart(named: str) -> tuple[tuple[str, ...], list[str]]:
    """The hosts, and the ports that stand behind them."""
    hosts, ports = set(), []
    for one in named.split(","):
        host, _, port = one.rpartition(":") if re.fullmatch(r"[^:]*:\d+", one) else (one, "", "")
        host = host.strip("[]").lower().rstrip(".")
        hosts.add("localhost" if host in _HERE or host.startswith("/") else host)
        ports += [port] if port else []
    return tuple(sorted(hosts)), ports


SECONDS = 5
"""Within which a server must take a connection."""
_OPTIONS: Mapping[str, Mapping[str, int]] = {
    # A network that swallows packets shows only by time: else a quarter of an hour.
    "psycopg": {"connect_timeout": SECONDS, "keepalives_idle": 30, "tcp_user_timeout": 30_000},
    "psycopg2": {"connect_timeout": SECONDS, "keepalives_idle": 30, "tcp_user_timeout": 30_000},
    "pymysql": {"connect_timeout": SECONDS},
    "mysqldb": {"connect_timeout": SECONDS},
}
_CREDENTIALS = re.compile(
    r"password authentication failed|no password supplied|role \S+ does not exist|no pg_hba\.conf|"
    r"Access denied for user"
)
_RIGHTS = re.compile(r"permission denied|command denied|must be owner")
_MISSING = re.compile(r"database \S+ does not exist|Unknown database")
_HOST = re.compile(r"failed to resolve host|could not translate host name|Unknown \S*server host")


@dataclass(frozen=True)
class Database:
    """A database as the environment names it."""

    uri: str
    """SQLAlchemy's URL."""
    what: str
    """`Optuna's database`, `MLflow's database`."""
    variable: str
    """That holds the URL."""

    def __str__(self) -> str:
        return f"{self.what} at {without_password(self.uri)}"


@dataclass(frozen=True)
class Found:
    """What is in a database."""

    tables: frozenset[str]
    revision: str | None
    """Of Alembic, the one program of migrations: `alembic_version` holds it."""

    @property
    def is_optunas(self) -> bool:
        """Whether Optuna has tables there."""
        return {"studies", "trials"} <= self.tables

    @property
    def is_mlflows(self) -> bool:
        """Whether MLflow has: those of runs, or those of its users."""
        return {"experiments", "runs"} <= self.tables or "alembic_version_auth" in self.tables


def look(database: Database) -> Found:
    """What is there. Raises as `meaning` says, and TrackingError where the URL is none.

    Takes some seconds at most, however the server is away.
    """
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.pool import NullPool

    url = parsed(database.uri, database.variable)
    _check_host(database, url)
    with in_plain_words(database):
        engine = create_engine(url, poolclass=NullPool, connect_args=connect_args(url))
        with engine.connect() as connection:
            tables = frozenset(inspect(connection).get_table_names())
            row = None
            if "alembic_version" in tables:
                row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
            return Found(tables, None if row is None else str(row[0]))


def connect_args(url: URL) -> dict[str, int]:
    """What the driver is to be told so that nothing waits for ever, unless the URL tells it."""
    known = _OPTIONS.get(url.get_driver_name(), {})
    return {name: value for name, value in known.items() if name not in url.query}


@contextmanager
def in_plain_words(database: Database) -> Iterator[None]:
    """Raises what `meaning` makes of an error of SQLAlchemy's, or of a driver that is not there."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, ImportError) as error:
        raise meaning(database, error) from None


def meaning(database: Database, error: Exception) -> RuntimeError:
    """The error to raise for one of SQLAlchemy's, its driver's, or that there is no driver.

    NotLetIn: user or password; UnknownHost; TrackingError: no such database, no right to its
    tables, no such dialect; ServiceUnreachable: it is away, or has no room for us now.
    """
    from sqlalchemy import exc

    if isinstance(error, ImportError):
        return TrackingError(
            f"{database} needs the Python package {error.name}, which is not installed: "
            'pip install "carft-sweep[cluster]" brings PostgreSQL\'s (psycopg; with SQLAlchemy '
            "2.0 write postgresql+psycopg://)"
        )
    if isinstance(error, exc.NoSuchModuleError):
        return TrackingError(f"{database.variable} names a kind of database nobody knows: {error}")
    said = getattr(error, "orig", None) or error
    text = _first_line(scrubbed(str(said), database.uri))
    if _CREDENTIALS.search(text):
        return NotLetIn(
            f"{database} does not let us in ({text}): see to user and password in "
            f"{database.variable}"
        )
    if _HOST.search(text):
        return unknown_host(database)
    if _MISSING.search(text):
        return TrackingError(
            f"{database} is not there ({text}): create it, CREATE DATABASE name OWNER user, or "
            f"mend {database.variable}"
        )
    if _RIGHTS.search(text) or getattr(said, "sqlstate", None) == "42501":
        return TrackingError(
            f"{database} keeps its tables from the user of {database.variable} ({text}): let the "
            "database belong to that user, ALTER DATABASE name OWNER TO user, and the tables in it"
        )
    if isinstance(error, exc.ProgrammingError | exc.DataError | exc.NotSupportedError):
        return TrackingError(f"{database} refuses: {text}")
    return ServiceUnreachable(f"{database} does not answer: {text}")


def unknown_host(database: Database) -> UnknownHost:
    """The error for a name that no host has."""
    return UnknownHost(
        f"{database} is on a host that nobody knows by this name from here: see to the host in "
        f"{database.variable}"
    )


def _check_host(database: Database, url: URL) -> None:
    """A driver waits for a host that does not answer as long as it likes; not all can be told."""
    port = url.port or PORTS.get(url.get_backend_name())
    if url.host is None or port is None or "," in url.host:
        return
    try:
        socket.create_connection((url.host, port), timeout=SECONDS).close()
    except OSError as error:
        if is_unknown_name(error):
            raise unknown_host(database) from None
        raise ServiceUnreachable(
            f"no database answers at {without_password(database.uri)} ({url.host}:{port}): "
            f"{error}; {database.variable} names it"
        ) from None


def is_unknown_name(error: Any) -> bool:
    """Whether a socket's error says that no host has the name, not that nobody could be asked."""
    names = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
    return isinstance(error, socket.gaierror) and error.errno in names


def _first_line(text: str) -> str:
    """Without PostgreSQL's picture of the place in the statement, and its advice."""
    return text.strip().partition("\n")[0].removeprefix("connection failed: ")
