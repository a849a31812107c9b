"""Which database a URL of SQLAlchemy's names, however it is written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote_plus

from tracking.base import TrackingError
from tracking.where import is_server, without_password

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
