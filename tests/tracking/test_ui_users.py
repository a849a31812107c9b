"""Who may use a served home: what is kept, where, and who can read it."""

from __future__ import annotations

import configparser
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.mounts import mount
from tracking.errors import TrackingError
from tracking.ui_server import prepare

PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
KEY = "MLFLOW_FLASK_SERVER_SECRET_KEY"
GIVEN = "a password that is given"


def nobody() -> None:
    """Nobody sits before a terminal."""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PASSWORD, KEY, "CARFT_UI_PASSWORD", "MLFLOW_AUTH_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)


def begun(database: Path) -> None:
    """As MLflow leaves its users."""
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("CREATE TABLE users (username text, is_admin boolean)")
        opened.execute("INSERT INTO users VALUES ('admin', 1)")
        opened.commit()


def test_a_password_is_made_up_once_and_kept_for_the_owner_alone(tmp_path: Path) -> None:
    first, again = prepare(tmp_path, nobody), prepare(tmp_path, nobody)
    kept = tmp_path / "ui" / "admin-password"
    assert first == again
    assert first.environ[PASSWORD] == kept.read_text().strip()
    assert len(first.environ[PASSWORD]) >= 20
    assert first.environ[PASSWORD] not in first.note
    assert str(kept) in first.note
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "ui").iterdir()}
    names = ("admin-password", "basic_auth.ini", "session-key", "users.db")
    assert modes == dict.fromkeys(names, 0o600)
    assert (tmp_path / "ui").stat().st_mode & 0o777 == 0o700


def test_the_configuration_names_a_database_of_its_own(tmp_path: Path) -> None:
    home = tmp_path / "50% of it"
    config = configparser.ConfigParser()
    config.read(prepare(home, nobody).environ["MLFLOW_AUTH_CONFIG_PATH"])
    assert config["mlflow"]["database_uri"] == f"sqlite:///{home / 'ui' / 'users.db'}"
    assert config["mlflow"]["default_permission"] == "READ"
    assert "admin_password" not in config["mlflow"]


def test_a_given_password_is_taken_and_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = prepare(tmp_path / "a", lambda: GIVEN)
    assert typed.environ[PASSWORD] == GIVEN
    monkeypatch.setenv("CARFT_UI_PASSWORD", GIVEN[::-1])
    named = prepare(tmp_path / "b", lambda: GIVEN)
    assert named.environ[PASSWORD] == GIVEN[::-1]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or GIVEN[:9] not in path.read_text() + path.read_text()[::-1]
    monkeypatch.setenv("CARFT_UI_PASSWORD", "short")
    with pytest.raises(TrackingError, match="12 characters or more"):
        prepare(tmp_path / "c", lambda: GIVEN)


def test_where_there_is_an_administrator_no_password_is_asked_for(tmp_path: Path) -> None:
    key = prepare(tmp_path, nobody).environ[KEY]
    database = tmp_path / "ui" / "users.db"
    begun(database)

    def asked() -> str:
        raise AssertionError("asked")

    later = prepare(tmp_path, asked)
    assert PASSWORD not in later.environ
    assert later.environ[KEY] == key
    assert str(database) in later.note


def test_what_the_administrator_of_the_machine_has_set_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", "/etc/mlflow/auth.ini")
    monkeypatch.setenv(KEY, "a key of theirs")
    users = prepare(tmp_path, nobody)
    assert users.environ == {KEY: "a key of theirs"}
    assert "/etc/mlflow/auth.ini" in users.note


def test_where_sqlite_would_lose_users_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    mount(monkeypatch, home, "nfs4")
    with pytest.raises(TrackingError, match=r"network file system \(nfs4\).*MLFLOW_AUTH_CONFIG"):
        prepare(home, nobody)
    assert list(home.iterdir()) == []


def test_another_file_in_the_place_of_users_is_told(tmp_path: Path) -> None:
    (tmp_path / "ui").mkdir()
    (tmp_path / "ui" / "users.db").write_text("something else, longer than a header" * 9)
    with pytest.raises(TrackingError, match="is not an SQLite database"):
        prepare(tmp_path, nobody)
