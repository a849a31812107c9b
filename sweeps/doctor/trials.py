"""Optuna's storage, where trials lie: reachable, of a fitting schema, its own, and on time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.doctor.base import Asked, Check, Finding, ok, wrong
from sweeps.doctor.clock import agree
from sweeps.home import JOURNAL, Home
from tracking.where import without_password

if TYPE_CHECKING:
    from sqlalchemy import Engine

_MLFLOW = "experiments"
"""A table that MLflow makes, and Optuna does not."""
_OPTUNA = "studies"
_UPGRADE = "make a copy of it, then: optuna storage upgrade --storage URL"


@dataclass(frozen=True)
class Database:
    """What one look into a database tells."""

    tables: frozenset[str]
    revision: str | None
    now: float
    """Its clock, in seconds since 1970; of SQLite, which has none of its own, ours."""
    asked: float
    came: float


def _storage(asked: Asked) -> Iterator[Finding]:
    url = _url(asked.home)
    if url is None:
        file = asked.home.optuna
        begins = "" if file.exists() else ", which the first run begins"
        yield ok(f"{file.absolute()}{begins}")
        if file.exists():
            yield from _opened(asked.home)
        return
    found = _look(url)
    studies = "no studies yet" if _OPTUNA not in found.tables else "with Optuna's tables"
    yield ok(f"{without_password(url)} lets us in, {studies}")


def _opened(home: Home) -> Iterator[Finding]:
    """The journal, or a file that is broken: the ledger says what is wrong with it."""
    from sweeps.ledger import storage

    if home.optuna.name == JOURNAL:
        storage(home)


def _schema(asked: Asked) -> Iterator[Finding]:
    url = _database(asked.home)
    if url is None:
        return
    found, head = _look(url).revision, _head()
    if found is None:
        yield ok("the database has no tables of Optuna's yet; the first run makes them")
    elif found == head:
        yield ok(f"the database's schema is that of the installed Optuna ({head})")
    else:
        yield wrong(f"the database's schema is {found}, the installed Optuna wants {head}")


def _apart(asked: Asked) -> Iterator[Finding]:
    url = _database(asked.home)
    if url is not None and _MLFLOW in _look(url).tables:
        yield wrong(f"{without_password(url)} has MLflow's tables")


def _clock(asked: Asked) -> Iterator[Finding]:
    url = _database(asked.home)
    if url is not None and not url.startswith("sqlite"):
        found = _look(url)
        yield agree("Optuna's database", found.now, found.asked, found.came)


def _url(home: Home) -> str | None:
    """Of the database that the environment names; None for the home's own file."""
    import os

    return os.environ.get("CARFT_OPTUNA_STORAGE", "").strip() or None


def _database(home: Home) -> str | None:
    """Of the database in use; None for a journal, and for a file that is not there yet."""
    url = _url(home)
    if url is not None:
        return url
    file = home.optuna
    return f"sqlite:///{file.absolute()}" if file.name != JOURNAL and file.exists() else None


def _look(url: str) -> Database:
    """One visit, by which nothing is made. Raises what SQLAlchemy raises."""
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine, inspect

    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            tables = frozenset(inspect(connection).get_table_names())
            revision = MigrationContext.configure(connection).get_current_revision()
            asked = time.time()
            now = _now(engine)
            return Database(
                tables, revision if _OPTUNA in tables else None, now, asked, time.time()
            )
    finally:
        engine.dispose()


def _now(engine: Engine) -> float:
    from sqlalchemy import text

    if engine.dialect.name == "sqlite":
        return time.time()
    with engine.connect() as connection:
        return float(connection.execute(text("SELECT extract(epoch FROM now())")).scalar_one())


def _head() -> str | None:
    """The revision that the installed Optuna wants."""
    import optuna
    from alembic.script import ScriptDirectory

    scripts = Path(optuna.__file__).parent / "storages" / "_rdb" / "alembic"
    return ScriptDirectory(str(scripts)).get_current_head()


CHECKS = (
    Check(
        "trials.storage",
        "Optuna's database or journal: reachable, readable",
        "start the database, or mend CARFT_OPTUNA_STORAGE",
        _storage,
    ),
    Check(
        "trials.schema",
        "the database's schema against the installed Optuna",
        _UPGRADE,
        _schema,
    ),
    Check(
        "trials.apart",
        "that it is not MLflow's database too: both keep a table alembic_version",
        "give Optuna a database of its own in CARFT_OPTUNA_STORAGE",
        _apart,
    ),
    Check(
        "trials.clock",
        "the database's clock against ours",
        "let both follow one time server (chronyd, systemd-timesyncd)",
        _clock,
    ),
)
