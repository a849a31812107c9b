"""Optuna's storage, on a real PostgreSQL and in files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sweeps.home import Home
from sweeps.ledger.storage import storage
from tests.mounts import mount
from tests.services.postgres import ADMIN, ADMIN_PASSWORD, Postgres
from tests.sweeps.doctor.findings import look, only

EVERY = ("trials.storage", "trials.schema", "trials.apart")


@pytest.fixture
def database(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of one that the environment names."""
    name = postgres.new_database()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", postgres.url(name))
    return name


@pytest.mark.usefixtures("database")
def test_a_database_is_looked_into_before_and_after_the_first_run(tmp_path: Path) -> None:
    assert "has no studies yet" in only(look("trials.storage", tmp_path), "ok")
    assert "the first run makes them" in only(look("trials.schema", tmp_path), "ok")
    storage(Home(tmp_path))
    assert "has studies" in only(look("trials.storage", tmp_path), "ok")
    assert "that of the installed Optuna" in only(look("trials.schema", tmp_path), "ok")
    assert look("trials.apart", tmp_path) == []


@pytest.mark.parametrize(
    ("revision", "todo"), [("v3.0.0.d", "optuna storage upgrade"), ("v99", "install the newer")]
)
def test_another_schema_is_wrong_and_what_to_do_depends_on_which(
    database: str, postgres: Postgres, tmp_path: Path, revision: str, todo: str
) -> None:
    postgres.sql(
        "CREATE TABLE studies (x int); CREATE TABLE trials (x int);"
        "CREATE TABLE alembic_version (version_num text);"
        f"INSERT INTO alembic_version VALUES ('{revision}')",
        database,
    )
    told = only(look("trials.schema", tmp_path), "wrong")
    assert f"schema is {revision}, the installed Optuna wants v3" in told
    assert todo in told


def test_what_keeps_us_out_is_told_without_the_password(
    database: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("CARFT_OPTUNA_STORAGE", postgres.url(database, password="not the one"))
        told = only(look("trials.storage", tmp_path), "wrong")
        assert f'password authentication failed for user "{ADMIN}"' in told
        assert "not the one" not in told
        patch.setenv("CARFT_OPTUNA_STORAGE", postgres.url("nowhere"))
        assert "CREATE DATABASE" in only(look("trials.storage", tmp_path), "wrong")
    with postgres.away():
        told = only(look("trials.storage", tmp_path), "unreachable")
    assert "start the database" in told
    assert ADMIN_PASSWORD not in told


def test_one_database_for_both_is_wrong(
    database: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.url(database))
    assert "name one database" in only(look("trials.apart", tmp_path), "wrong")


def test_a_homes_own_files_are_looked_into_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CARFT_OPTUNA_STORAGE", raising=False)
    assert "the first run begins" in only(look("trials.storage", tmp_path), "ok")
    assert all(look(name, tmp_path) == [] for name in EVERY[1:])
    storage(Home(tmp_path))
    assert only(look("trials.storage", tmp_path), "ok").startswith(f"{tmp_path / 'optuna.db'} ")
    assert "that of the installed Optuna" in only(look("trials.schema", tmp_path), "ok")
    assert look("trials.apart", tmp_path) == []
    with sqlite3.connect(tmp_path / "optuna.db") as connection:
        connection.execute("CREATE TABLE experiments (x int)")
        connection.execute("CREATE TABLE runs (x int)")
    connection.close()
    assert "has MLflow's tables" in only(look("trials.apart", tmp_path), "wrong")


def test_a_broken_journal_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARFT_OPTUNA_STORAGE", raising=False)
    home = tmp_path / "home"
    home.mkdir()
    mount(monkeypatch, home, "nfs4")
    (home / "optuna.journal").write_text("something else")
    assert "not a journal of Optuna's" in only(look("trials.storage", home), "wrong")
