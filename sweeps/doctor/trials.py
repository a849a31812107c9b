"""Optuna's storage, where trials lie: reachable, of a fitting schema, its own, and on time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.doctor.base import Asked, Check, Finding, ok, wrong
from sweeps.doctor.clock import agree
from sweeps.home import JOURNAL, Home
from sweeps.optuna_database import VARIABLE
from tracking.databases import Database, Found, connect_args, in_plain_words, look

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory


def _storage(asked: Asked) -> Iterator[Finding]:
    home, database = asked.home, asked.home.database
    if database is not None:
        studies = "has studies" if look(database).is_optunas else "has no studies yet"
        yield ok(f"{database} lets us in, and {studies}")
        return
    file = home.optuna
    if file.name == JOURNAL and file.exists():
        from sweeps.studies import storage

        storage(home)  # says what is wrong with it
    yield ok(f"{file.absolute()}{'' if file.exists() else ', which the first run begins'}")


def _schema(asked: Asked) -> Iterator[Finding]:
    database = _database(asked.home)
    found = None if database is None else look(database)
    if found is None:
        return
    head = _scripts().get_current_head()
    if not found.is_optunas:
        yield ok("the database has no tables of Optuna's yet; the first run makes them")
    elif found.revision == head:
        yield ok(f"the database's schema is that of the installed Optuna ({head})")
    else:
        yield wrong(
            f"the database's schema is {found.revision}, the installed Optuna wants {head}",
            _to_mend(found),
        )


def _to_mend(found: Found) -> str:
    if found.revision in {script.revision for script in _scripts().walk_revisions()}:
        return f"make a copy of it, then: optuna storage upgrade --storage URL, that of {VARIABLE}"
    return "install the newer Optuna that made it: pip install -U optuna"


def _apart(asked: Asked) -> Iterator[Finding]:
    database = _database(asked.home)
    if asked.home.database is not None:
        from sweeps.optuna_database import check

        check(asked.home.path, asked.home.database)
    elif database is not None and look(database).is_mlflows:
        yield wrong(f"{database} has MLflow's tables")


def _clock(asked: Asked) -> Iterator[Finding]:
    from sqlalchemy import create_engine, make_url, text

    database = asked.home.database
    url = None if database is None else make_url(database.uri)
    if database is None or url is None or url.get_backend_name() != "postgresql":
        return
    engine = create_engine(url, connect_args=connect_args(url))
    with in_plain_words(database), engine.connect() as connection:
        before = time.time()
        theirs = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))
        yield agree(str(database), float(theirs.scalar_one()), before, time.time())
    engine.dispose()


def _database(home: Home) -> Database | None:
    """That of the environment, or the home's own file; None for a journal or where none is yet."""
    if home.database is not None:
        return home.database
    file = home.optuna
    if file.name == JOURNAL or not file.exists():
        return None
    return Database(f"sqlite:///{file.absolute()}", "Optuna's database", VARIABLE)


def _scripts() -> ScriptDirectory:
    """The migrations of the installed Optuna."""
    import optuna
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(optuna.__file__).parent / "storages" / "_rdb" / "alembic"))


CHECKS = (
    Check(
        "trials.storage",
        "Optuna's database or journal: reachable, readable, the one that the home began with",
        "start the database, or mend CARFT_OPTUNA_STORAGE",
        _storage,
        first=True,
    ),
    Check(
        "trials.schema",
        "the database's schema against the installed Optuna",
        "make a copy of it, then: optuna storage upgrade --storage URL",
        _schema,
    ),
    Check(
        "trials.apart",
        "that it is Optuna's alone: MLflow and others keep a table alembic_version too",
        "give Optuna a database of its own in CARFT_OPTUNA_STORAGE",
        _apart,
    ),
    Check(
        "trials.clock",
        "the clock of a PostgreSQL server against ours",
        "let both follow one time server (chronyd, systemd-timesyncd)",
        _clock,
    ),
)
