"""Where the Optuna studies of a home lie."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_core.errors import RequestError
from carft_core.files import write_atomically
from sweeps.home import DATABASE, JOURNAL, Home
from tracking.database import (
    Database,
    DatabaseTables,
    connect_args,
    identity,
    inspect_database,
    parse_url,
    translate_error,
    translated_errors,
)
from tracking.errors import TrackingError
from tracking.location import (
    HOME_VARIABLE,
    TRACKING_VARIABLE,
    home_id,
    network_file_system,
    resolve_location,
    sqlite_file,
    waiting,
)

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage
    from sqlalchemy import Engine


STORAGE_VARIABLE = "CARFT_OPTUNA_STORAGE"
RECORD = "optuna.storage"
"""The file of a home that says which database has its trials, without user and password."""
PATIENCE = 30.0
"""Seconds for which a driver waits for a database that has gone away: it may be restarting. More
would let other hosts take the driver for dead."""
BUSY_SECONDS = 60.0
"""For which SQLite waits for another process's transaction."""
_PAUSE = 1.0
_ATTEMPTS = 6
_ANOTHER = (
    f"or name another home with --home or {HOME_VARIABLE}: copies of folders of runs/ are reused "
    "there"
)


def of_home(
    home: Path, files: Sequence[Path], environ: Mapping[str, str] | None = None
) -> Database | None:
    """The database of a home's trials; None where they are in `files` of its own, or will be.

    Raises RequestError where the home has begun with another place than the environment names.
    """
    database, begun = named(environ), _recorded(home)
    if database is None:
        if begun is None:
            return None
        raise RequestError(
            f"the trials of the home {home} are in {begun}: set {STORAGE_VARIABLE} to its URL, "
            "with user and password"
        )
    now = str(identity(database.uri))
    if begun is None and files:
        raise RequestError(
            f"the trials of the home {home} are in {files[0]}, with which it began, and "
            f"{STORAGE_VARIABLE} names {now}: unset it, {_ANOTHER}"
        )
    if begun not in (None, now):
        raise RequestError(
            f"the trials of the home {home} are in {begun}, with which it began, and "
            f"{STORAGE_VARIABLE} names {now}: set it as it was, {_ANOTHER}. Where the database has "
            f"moved, or this is another name of it, write {now} into {home / RECORD}"
        )
    return database


def named(environ: Mapping[str, str] | None = None) -> Database | None:
    """What the environment names. Raises TrackingError, without a password, where it is no URL of
    a database that stays.
    """
    uri = (os.environ if environ is None else environ).get(STORAGE_VARIABLE, "").strip()
    if not uri:
        return None
    url = parse_url(uri, STORAGE_VARIABLE)
    if url.get_backend_name() == "sqlite" and sqlite_file(uri) is None:
        raise TrackingError(
            f"{STORAGE_VARIABLE} names a database in memory: write sqlite:////path/to/file"
        )
    return Database(uri, "Optuna's database", STORAGE_VARIABLE)


def check(home: Path, database: Database) -> None:
    """Raise an error where trials would not be safe there, or it cannot be used; nothing is made.

    RequestError and TrackingError: it is MLflow's, another program's, of another Optuna, SQLite on
    a network file system; AccessDenied, HostNotFound, ServiceUnreachable as of `inspect_database`.
    """
    place = resolve_location(home)
    if identity(database.uri) == identity(place.named):
        raise RequestError(
            f"{STORAGE_VARIABLE} and {TRACKING_VARIABLE} name one database, "
            f"{identity(database.uri)}: Optuna and MLflow need one each, since both keep a table "
            "alembic_version; CREATE DATABASE makes another one on the same server"
        )
    file = sqlite_file(database.uri)
    kind = None if file is None else network_file_system(file)
    if kind is not None:
        raise RequestError(
            f"{database} would lie on a network file system ({kind}), where SQLite loses data: "
            f"name a PostgreSQL database in {STORAGE_VARIABLE}, or unset it: trials are then in "
            "the home, in Optuna's journal where SQLite cannot be"
        )
    if (file is None or file.exists()) and _looked_into(database).is_optunas:
        _once(database.uri)


def open_database(home: Path, database: Database) -> RDBStorage:
    """Optuna's storage, its tables made where there are none; the home remembers that it is there.

    Once it is open, a connection that is lost is made again for PATIENCE seconds, and every error
    is one of ours. Raises as `check` does.
    """
    opened = _once(database.uri)
    if _recorded(home) is None:
        text = f"{identity(database.uri)}\n"
        write_atomically(home / RECORD, lambda file: file.write_text(text, encoding="utf-8"))
    return opened


@functools.cache
def _once(uri: str) -> RDBStorage:
    """One for each database in this process, so that a driver has one connection, not several."""
    database = Database(uri, "Optuna's database", STORAGE_VARIABLE)
    file = sqlite_file(uri)
    if file is None:
        opened = _open(database, _looked_into(database))
        _listen(opened.engine, database)
        return opened
    file.parent.mkdir(parents=True, exist_ok=True)
    return _open(database, _looked_into(database))


def _looked_into(database: Database) -> DatabaseTables:
    found = inspect_database(database)
    if found.is_mlflows:
        raise RequestError(
            f"{database} is MLflow's (it has its tables of runs or of users): Optuna needs one of "
            f"its own, name another one in {database.variable}"
        )
    if found.revision is not None and not found.is_optunas:
        raise RequestError(
            f"{database} belongs to another program (it has a table alembic_version): name one "
            f"for Optuna alone in {database.variable}"
        )
    return found


def _open(database: Database, found: DatabaseTables) -> RDBStorage:
    """Tables are made only where there are none: a schema of another Optuna is left as it is."""
    import optuna

    url = parse_url(database.uri, database.variable)
    kwargs: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
    if url.get_backend_name() != "sqlite":
        kwargs = {"connect_args": connect_args(url), "pool_pre_ping": True, "pool_size": 1}

    def make() -> RDBStorage:
        return optuna.storages.RDBStorage(
            # Optuna fills in what stands in braces.
            database.uri.replace("{", "{{").replace("}", "}}"),
            engine_kwargs=kwargs,
            skip_table_creation=found.is_optunas,
        )

    with translated_errors(database):
        try:
            return _beside_others(make)
        except RuntimeError as error:
            raise _other_schema(database, found, str(error)) from None


def _beside_others(make: Callable[[], RDBStorage]) -> RDBStorage:
    """Two homes may begin in a new database at once: who is second stumbles over the first's
    tables, and finds them whole a moment later. Raises SQLAlchemy's errors.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DBAPIError

    left = _ATTEMPTS
    while True:
        try:
            return make()
        except (DBAPIError, StorageInternalError) as error:
            left -= 1
            cause = error if isinstance(error, DBAPIError) else error.__cause__
            stumbled = re.search(r"already exists|duplicate key", str(cause))
            if not left or not stumbled:
                raise cause or error from None
            time.sleep(_PAUSE / 2)


def _other_schema(database: Database, found: DatabaseTables, said: str) -> TrackingError:
    """What to do about Optuna's word that the schema is not its own."""
    if "storage upgrade" not in said:
        return TrackingError(
            f"{database} was made by a newer version of Optuna (schema {found.revision}) than the "
            "one here: pip install -U optuna"
        )
    return TrackingError(
        f"{database} was made by an older version of Optuna (schema {found.revision}): make a copy "
        "of it, then run `optuna storage upgrade --storage URL` with the URL of "
        f"{database.variable}; nothing does it by itself"
    )


def _listen(engine: Engine, database: Database) -> None:
    """Let a lost connection be made again, and every error be said in plain words."""
    from sqlalchemy import event
    from sqlalchemy.exc import DBAPIError, IntegrityError

    patience = _Patience()

    def said(context: Any) -> None:
        error = context.sqlalchemy_exception
        # Optuna itself knows what to do about the one; the pool about a ping that fails.
        its_own = context.is_pre_ping or isinstance(error, IntegrityError)
        if isinstance(error, DBAPIError) and not its_own:
            raise translate_error(database, error)

    event.listen(engine, "do_connect", patience.connect)
    event.listen(engine, "handle_error", said)


class _Patience:
    """Waits for a server that is restarting: nothing was sent yet, so nothing is done twice."""

    def __init__(self) -> None:
        self._is_used_up = False

    def connect(self, dialect: Any, record: Any, args: Any, kwargs: Any) -> Any:
        """SQLAlchemy's `do_connect`."""
        del record
        until = time.monotonic() + (0 if self._is_used_up else PATIENCE)
        while True:
            try:
                made = dialect.connect(*args, **kwargs)
            except dialect.loaded_dbapi.OperationalError:
                self._is_used_up = time.monotonic() >= until
                if self._is_used_up:
                    raise
                time.sleep(_PAUSE)
            else:
                self._is_used_up = False
                return made


def _recorded(home: Path) -> str | None:
    try:
        return (home / RECORD).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):  # no home yet, or none that can be
        return None


_ID_LENGTH = 12
"""Characters of a home's id, 48 bits, that tell homes apart in one database."""


def storage(home: Home) -> BaseStorage:
    """Where Optuna keeps the home's trials, created quietly.

    Raises RequestError when it is another's, and for a database on a server as
    `ledger.storage.check` does.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with waiting(home.optuna_lock):
        database = home.database
        if database is not None:
            return open_database(home.path, database)
        _check(home)
        file = home.optuna
        if file.name == JOURNAL:
            from sweeps.ledger.study_journal import open_journal

            return open_journal(file)

        return optuna.storages.RDBStorage(
            f"sqlite:///{file.absolute()}",
            engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}},
        )


def study_name(home: Home, name: str, generation: int) -> str:
    """`kl_weight`, then `kl_weight@2` and so on.

    In a database that several homes may share the home's id stands before it: `3fa9c2d1b04e/`.
    """
    return f"{_prefix(home)}{name}" + ("" if generation == 1 else f"@{generation}")


def generations(opened: BaseStorage, home: Home, name: str) -> list[int]:
    """The generations of a sweep of the home."""
    pattern = re.compile(rf"{re.escape(_prefix(home) + name)}(?:@(\d+))?")
    found = (pattern.fullmatch(study.study_name) for study in opened.get_all_studies())
    return [int(match[1] or 1) for match in found if match]


def _prefix(home: Home) -> str:
    return "" if home.database is None else f"{home_id(home.path)[:_ID_LENGTH]}/"


def _check(home: Home) -> None:
    from carft_core.errors import RequestError

    there = home.optuna_files()
    if len(there) > 1:
        raise RequestError(
            f"{home.path} has two files of trials, {DATABASE} and {JOURNAL}; move away the one "
            "that is not this home's"
        )
    if not there or there[0].name == JOURNAL:
        return
    with there[0].open("rb") as opened:
        head = opened.read(16)
    if head and head != b"SQLite format 3\0":
        raise RequestError(f"{there[0]} is not an SQLite database; move it away")
