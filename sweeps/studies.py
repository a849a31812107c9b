"""Optuna's studies of a home: opened where they are kept, and found by the names of sweeps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sweeps.home import DATABASE, JOURNAL, Home
from tracking.locks import waiting
from tracking.where import home_id

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_ID_LENGTH = 12
"""Characters of a home's id, 48 bits, that tell homes apart in one database."""


def storage(home: Home) -> BaseStorage:
    """Where Optuna keeps the home's trials, created quietly.

    Raises RequestError when it is another's, and for a database on a server as
    `optuna_database.check` does.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with waiting(home.optuna_lock):
        database = home.database
        if database is not None:
            from sweeps.optuna_database import open_database

            return open_database(home.path, database)
        _check(home)
        file = home.optuna
        if file.name == JOURNAL:
            from sweeps.study_journal import open_journal

            return open_journal(file)
        from sweeps.optuna_database import BUSY_SECONDS

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
