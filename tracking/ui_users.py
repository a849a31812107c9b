"""Who may use MLflow's server on a home: its users, their database, and the first password.

MLflow's basic-auth app keeps them in a database of its own, never in that of the runs. All of it
lies in `<home>/ui/`, which its owner alone may read.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tracking.base import TrackingError
from tracking.file_systems import network_file_system

ADMIN = "admin"
SHORTEST = 12
"""Characters of a password, as MLflow wants them."""
VARIABLE = "CARFT_UI_PASSWORD"
_OWN = "MLFLOW_AUTH_CONFIG_PATH"
_CONFIG = """[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass(frozen=True)
class Users:
    """What the server is started with."""

    environ: dict[str, str]
    """With the password of the administrator when there is none yet, and the key of sessions."""
    told: str
    """Whom the server lets in, and where the password is; without the password."""


def prepare(home: Path, asked: Callable[[], str | None]) -> Users:
    """The users of a home, begun when there are none.

    The administrator's first password is that of CARFT_UI_PASSWORD, else what `asked` returns,
    else made up and kept in a file. Raises TrackingError where they cannot be kept safely.
    """
    key = os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY")
    if os.environ.get(_OWN):  # an administrator's own configuration stands as it is
        folder = _folder(home)
        key = key or _kept(folder / "session-key", lambda: secrets.token_hex(32))
        return Users(
            {"MLFLOW_FLASK_SERVER_SECRET_KEY": key},
            f"It asks for a name and a password, as {os.environ[_OWN]} says.",
        )
    kind = network_file_system(home)
    if kind is not None:
        raise TrackingError(
            f"--auth keeps users in an SQLite database in {home / 'ui'}, which lies on a network "
            f"file system ({kind}), where SQLite loses data; name a configuration of MLflow's "
            f"basic-auth app with another database in {_OWN}"
        )
    folder = _folder(home)
    database = folder / "users.db"
    config = folder / "basic_auth.ini"
    uri = f"sqlite:///{database.resolve()}".replace("%", "%%")  # configparser's own sign
    _private(config, _CONFIG.format(database=uri, admin=ADMIN))
    environ = {
        _OWN: str(config.resolve()),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key
        or _kept(folder / "session-key", lambda: secrets.token_hex(32)),
    }
    if _has_admin(database):
        return Users(environ, f"It asks for a name and a password; its users are in {database}.")
    password, told = _first_password(folder, asked)
    database.touch(0o600)
    return Users({**environ, "MLFLOW_AUTH_ADMIN_PASSWORD": password}, told)


def _first_password(folder: Path, asked: Callable[[], str | None]) -> tuple[str, str]:
    given = os.environ.get(VARIABLE) or asked()
    if given is None:
        file = folder / "admin-password"
        made = _kept(file, lambda: secrets.token_urlsafe(18))
        return made, f"Its first user is {ADMIN}; the password was made up, and is in {file}."
    if len(given) < SHORTEST:
        raise TrackingError(f"the password of {ADMIN} must have {SHORTEST} characters or more")
    return given, f"Its first user is {ADMIN}, with the password that you gave."


def _has_admin(database: Path) -> bool:
    """Whether MLflow has been here before: then it passes over a password that it is given."""
    if not database.exists():
        return False
    connection = sqlite3.connect(database)
    try:
        return bool(connection.execute("SELECT 1 FROM users WHERE is_admin").fetchone())
    except sqlite3.OperationalError:  # no tables yet
        return False
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"{database} is not an SQLite database ({error}): move it away"
        ) from None
    finally:
        connection.close()


def _folder(home: Path) -> Path:
    folder = home / "ui"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _kept(file: Path, make: Callable[[], str]) -> str:
    """The secret in a file, made on the first call."""
    if not file.exists():
        _private(file, f"{make()}\n")
    return file.read_text().strip()


def _private(file: Path, text: str) -> None:
    """Write a file that its owner alone may read, at no moment anybody else."""
    new = file.with_name(f".{file.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:  # noqa: PTH123
        opened.write(text)
    new.replace(file)
