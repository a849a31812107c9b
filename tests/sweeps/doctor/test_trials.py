"""The ledgers of a home, and where Optuna's studies are: in files, or on a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.home import Home
from sweeps.ledger.study import open_storage
from sweeps.ledger.trials import LEDGER_FILE, Ledger
from tests.mounts import mount
from tests.services.postgres import ADMIN, ADMIN_PASSWORD, Postgres
from tests.sweeps.doctor.findings import look, only


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a server nor a database is named."""
    for name in ("MLFLOW_TRACKING_URI", "CARFT_OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def database(unnamed: None, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of one that the environment names."""
    del unnamed
    name = postgres.new_database()
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", postgres.url(name))
    return name


def test_every_ledger_is_read_and_a_damaged_one_is_named_with_its_line(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert "0 ledgers can be read" in only(look("trials.ledger", tmp_path), "ok")
    for name in ("a", "b"):
        Ledger.create(home.sweep(name), 1, {"name": name}, {})
    assert "2 ledgers can be read" in only(look("trials.ledger", tmp_path), "ok")
    file = home.sweep("b") / LEDGER_FILE
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"tri')  # of a driver that was killed: the next one cuts it off
    assert "2 ledgers can be read" in only(look("trials.ledger", tmp_path), "ok")
    file.write_bytes(whole + b"damage\n")
    told = only(look("trials.ledger", tmp_path), "wrong")
    assert f"{file}:3 is damaged" in told
    assert "cut the file" in told


@pytest.mark.usefixtures("database")
def test_a_database_is_looked_into_before_and_after_the_first_run(tmp_path: Path) -> None:
    for _ in range(2):
        told = only(look("trials.study", tmp_path), "ok")
        assert "studies are written to Optuna's database at postgresql://" in told
        assert ADMIN_PASSWORD not in told
        open_storage(Home(tmp_path))


@pytest.mark.parametrize("revision", ["v3.0.0.d", "v99"])
def test_the_schema_of_another_optuna_is_wrong(
    database: str, postgres: Postgres, tmp_path: Path, revision: str
) -> None:
    open_storage(Home(tmp_path))
    postgres.sql(f"UPDATE alembic_version SET version_num = '{revision}'", database)
    told = only(look("trials.study", tmp_path), "wrong")
    assert "optuna storage upgrade" in told or "pip install -U optuna" in told, told


@pytest.mark.parametrize("tables", [("experiments", "runs"), ("alembic_version",)])
def test_a_database_of_another_program_is_wrong(
    database: str, postgres: Postgres, tmp_path: Path, tables: tuple[str, ...]
) -> None:
    for table in tables:
        postgres.sql(f"CREATE TABLE {table} (version_num text)", database)
        postgres.sql(f"INSERT INTO {table} VALUES ('1')", database)
    told = only(look("trials.study", tmp_path), "wrong")
    assert "one of its own" in told or "for Optuna alone" in told
    assert postgres.tables(database) == set(tables)


def test_what_keeps_us_out_is_told_without_the_password(
    database: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("CARFT_OPTUNA_STORAGE", postgres.url(database, password="not the one"))
        told = only(look("trials.study", tmp_path), "wrong")
        assert f'password authentication failed for user "{ADMIN}"' in told
        assert "not the one" not in told
        patch.setenv("CARFT_OPTUNA_STORAGE", postgres.url("nowhere"))
        assert "CREATE DATABASE" in only(look("trials.study", tmp_path), "wrong")
    with postgres.away():
        told = only(look("trials.study", tmp_path), "unreachable")
    assert "start the database" in told
    assert ADMIN_PASSWORD not in told


def test_one_database_for_both_is_wrong(
    database: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.url(database))
    assert "name one database" in only(look("trials.study", tmp_path), "wrong")


def test_a_homes_own_file_is_looked_into_as_well(tmp_path: Path) -> None:
    told = only(look("trials.study", tmp_path), "ok")
    assert told.startswith(f"the first run makes {tmp_path / 'optuna.db'}")
    assert list(tmp_path.iterdir()) == []
    open_storage(Home(tmp_path))
    told = only(look("trials.study", tmp_path), "ok")
    assert told.startswith(f"studies are written to {tmp_path / 'optuna.db'}")
    (tmp_path / "optuna.db").write_text("something else")
    told = only(look("trials.study", tmp_path), "wrong")
    assert "not a database" in told
    assert "remove the file" in told


def test_a_broken_journal_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    mount(monkeypatch, home, "nfs4")
    (home / "optuna.journal").write_text("something else\nand more\n")
    assert "remove the file" in only(look("trials.study", home), "wrong")
