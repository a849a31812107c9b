"""What backup.sh has copied while sweeps go on, restore.sh brings back whole into empty places."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.services.postgres import ADMIN, ADMIN_PASSWORD, PROGRAMS, Postgres
from tests.services.processes import HOST, ended
from tests.services.s3 import S3
from tests.sweeps.conftest import ONE_RUN, ToySweep, toy

__all__ = ["toy"]  # a fixture

DOCKER = Path(__file__).parents[2] / "docker"
HOME_FILES = {"id": "the home\n", "sweeps/s/sweep.yaml": "name: s\n", "runs/d/run.json": "{}"}
HOME_FILES |= {"sweeps/s/sent/ab.jsonl": '{"run":"d","id":"","as":"started"}\n'}
NOT_KEPT = {"cache/bank.bin": "features", "optuna.lock": ""}


@dataclass
class Places:
    """A home, three databases and a bucket, and the two scripts that copy them."""

    folder: Path
    postgres: Postgres
    s3: S3

    def __post_init__(self) -> None:
        self.owners = [self.postgres.new_user("password") for _ in range(2)]
        self.take_new_places()

    def take_new_places(self) -> None:
        self.make_databases()
        self.bucket = self.s3.new_bucket()
        self.home = self.folder / f"home {self.bucket}"

    def make_databases(self) -> None:
        """One of Optuna's user, two of MLflow's."""
        self.databases = [self.postgres.new_database() for _ in range(3)]
        owners = [self.owners[0], self.owners[1], self.owners[1]]
        for name, owner in zip(self.databases, owners, strict=True):
            self.postgres.sql(f"ALTER DATABASE {name} OWNER TO {owner}")

    @property
    def environ(self) -> dict[str, str]:
        optuna_db, mlflow_db, auth_db = self.databases
        return {
            **os.environ,
            **self.s3.environ,
            "PATH": f"{PROGRAMS[-1]}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            **{"PGHOST": HOST, "PGPORT": str(self.postgres.port)},
            **{"PGUSER": ADMIN, "PGPASSWORD": ADMIN_PASSWORD},
            **{"OPTUNA_DB": optuna_db, "MLFLOW_DB": mlflow_db, "MLFLOW_AUTH_DB": auth_db},
            **{"CARFT_HOME": str(self.home), "CARFT_BUCKET": self.bucket},
        }

    def fill(self) -> None:
        with self.trials() as storage:
            study = optuna.create_study(storage=storage, study_name="s")
            study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"point": 0}))
        for name in self.databases[1:]:
            self.sql("CREATE TABLE kept (id serial PRIMARY KEY, text text)", name)
            self.sql("INSERT INTO kept (text) VALUES ('ü'), (NULL)", name)
        for path, text in (HOME_FILES | NOT_KEPT).items():
            file = self.home / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for key, body in {"1/r/artifacts/ü b.txt": b"text", "1/empty": b""}.items():
            self.s3.client().put_object(Bucket=self.bucket, Key=key, Body=body)

    @contextmanager
    def trials(self) -> Iterator[optuna.storages.RDBStorage]:
        url = self.postgres.url(self.databases[0], self.owners[0], "password")
        storage = optuna.storages.RDBStorage(url)
        yield storage
        storage.engine.dispose()

    def sql(self, statement: str, database: str) -> list[tuple[Any, ...]]:
        """As MLflow's user."""
        return self.postgres.sql(statement, database, self.owners[1], "password")

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return ended(DOCKER / script, *arguments, environ=self.environ | variables)


@pytest.fixture
def places(tmp_path: Path, postgres: Postgres, s3: S3) -> Places:
    made = Places(tmp_path, postgres, s3)
    made.fill()
    return made


def _files(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def _assert_whole(places: Places) -> None:
    """In the places that it names there is what `fill` made, and its owners can go on."""
    with places.trials() as storage:
        study = optuna.load_study(storage=storage, study_name="s")
        assert [trial.value for trial in study.trials] == [0.5]
        study.add_trial(optuna.trial.create_trial(value=0.6))
    for name in places.databases[1:]:
        places.sql("INSERT INTO kept (text) VALUES ('new')", name)
        rows = places.sql("SELECT * FROM kept ORDER BY id", name)
        assert rows == [(1, "ü"), (2, None), (3, "new")]
    assert _files(places.home) == HOME_FILES
    assert sorted(places.s3.keys(places.bucket)) == ["1/empty", "1/r/artifacts/ü b.txt"]
    answer = places.s3.client().get_object(Bucket=places.bucket, Key="1/r/artifacts/ü b.txt")
    assert answer["Body"].read() == b"text"


def test_databases_home_and_bucket_come_back_whole_and_with_their_owners(
    places: Places, tmp_path: Path
) -> None:
    backup = tmp_path / "backups" / "first one"
    done = places.run("backup.sh", str(backup))
    assert (done.returncode, "not in it" in done.stderr) == (0, False), done.stderr
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700
    done = places.run("backup.sh", str(tmp_path / "less"), CARFT_BUCKET="")
    assert (done.returncode, "not in it: artifacts" in done.stderr) == (0, True)
    places.take_new_places()
    done = places.run("restore.sh", str(backup))
    assert done.returncode == 0, done.stderr
    _assert_whole(places)


def check_refused(
    places: Places, script: str, backup: Path, message: str, **variables: str
) -> None:
    """With a message that has this in it, or that is this line."""
    done = places.run(script, str(backup), **variables)
    assert done.returncode == 2, done.stderr
    assert done.stderr == message if message.endswith("\n") else message in done.stderr


def test_nothing_that_is_there_is_overwritten(places: Places, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    assert places.run("backup.sh", str(backup)).returncode == 0
    message = f"{backup} is there already: name a new folder\n"
    check_refused(places, "backup.sh", backup, message)
    check_refused(places, "restore.sh", backup, "is not empty: drop it, and make it anew")
    for name in places.databases:
        places.postgres.sql(f"DROP DATABASE {name}")
    check_refused(places, "restore.sh", backup, "cannot be used: make it, with its owner")
    places.make_databases()
    message = f"the home {places.home} is not empty: move it away\n"
    check_refused(places, "restore.sh", backup, message)
    shutil.rmtree(places.home)
    check_refused(places, "restore.sh", backup, f"the bucket {places.bucket} is not empty\n")
    assert not places.home.exists()
    message = f"{backup} has a bucket: name one in CARFT_BUCKET\n"
    check_refused(places, "restore.sh", backup, message, CARFT_BUCKET="")


def test_a_backup_that_was_cut_is_not_restored(places: Places, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    assert places.run("backup.sh", str(backup), CARFT_BUCKET="no-such").returncode != 0
    assert not backup.exists()
    message = "backup.incomplete is of a backup that was not finished: remove it\n"
    assert places.run("backup.sh", str(backup)).stderr.endswith(message)
    shutil.rmtree(tmp_path / "backup.incomplete")
    assert places.run("backup.sh", str(backup), OPTUNA_DB="").returncode == 0
    places.take_new_places()
    check_refused(places, "restore.sh", backup, f"{backup} has no database optuna\n")
    with (backup / "home.tar").open("ab") as file:
        file.write(b"x")
    check_refused(places, "restore.sh", backup, "is no whole backup")


SHIM = """#!/usr/bin/env bash
# `docker compose` that runs each command here, having taken out what says where.
set -eu
printf '%s\\0' "$@" >> "$SHIM_LOG"
printf 'END\\0' >> "$SHIM_LOG"
while :; do
  case $1 in
    compose | exec | run | -T | --rm | --no-deps) shift ;;
    --file | --env | --entrypoint) shift 2 ;;
    postgres | carft | mlflow) shift; break ;;
  esac
done
words=()
for word in "$@"; do
  case $word in
    python) word=$PYTHON ;;
    /carft) word=$SHIM_HOME ;;
    /opt/carft/*) word=$SHIM_DOCKER/${word#/opt/carft/} ;;
  esac
  words+=("$word")
done
exec "${words[@]}"
"""


def test_with_compose_the_same_commands_run_in_its_containers(
    places: Places, tmp_path: Path
) -> None:
    shim, log = tmp_path / "bin" / "docker", tmp_path / "log"
    shim.parent.mkdir()
    shim.write_text(SHIM)
    shim.chmod(0o755)

    def run(script: str) -> None:
        environ = {"PATH": f"{shim.parent}:{places.environ['PATH']}", "SHIM_LOG": str(log)}
        environ |= {"SHIM_DOCKER": str(DOCKER), "SHIM_HOME": str(places.home)}
        done = places.run(script, "--compose", str(tmp_path / "backup"), **environ)
        assert done.returncode == 0, done.stderr

    run("backup.sh")
    trials, runs, users = places.databases
    places.take_new_places()
    run("restore.sh")
    _assert_whole(places)
    words = log.read_text().split("\0")
    assert not [word for word in words if ADMIN_PASSWORD in word or "SECRET" in word]
    commands = " ".join(words).split(" END ")
    compose = f"compose --file {DOCKER / 'compose.yaml'}"
    starts = (
        f"{compose} exec -T --env PGUSER=postgres postgres pg_",
        f"{compose} exec -T --env PGUSER=postgres postgres psql ",
        f"{compose} run --rm -T --no-deps --entrypoint env carft ",
        f"{compose} run --rm -T --no-deps mlflow python /opt/carft/server/bucket_tar.py ",
    )
    assert all(command.startswith(starts) for command in commands if command.strip())
    # What refers to something is copied before it.
    order = [f"={trials}", " runs", f"={runs}", f"={users}", " mlartifacts", " pack "]
    copying = commands[1:]  # the first asks whether there is a home
    assert all(word in command for word, command in zip(order, copying, strict=False))
    with tarfile.open(tmp_path / "backup" / "home.tar") as archive:
        names = archive.getnames()
    assert names.index("sweeps") < names.index("runs")


@contextmanager
def _written(database: Path) -> Iterator[None]:
    """Within, the database has a row, and another one that is not committed yet."""
    with closing(sqlite3.connect(database)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE kept (number INTEGER)")
        writer.execute("INSERT INTO kept VALUES (1)")
        writer.commit()
        writer.execute("INSERT INTO kept VALUES (2)")
        yield


def test_a_home_of_one_machine_is_copied_while_it_is_written_without_keys_and_passwords(
    tmp_path: Path, toy: ToySweep
) -> None:
    toy.run(**ONE_RUN)
    home, backup = toy.home.path, tmp_path / "backup"
    (home / "ui").mkdir(mode=0o700)
    (home / "mlartifacts").mkdir()
    (home / "mlartifacts" / "a.txt").write_text("artifact")
    for name in ("session-key", "admin-password"):
        (home / "ui" / name).write_text(f"planted-{name}\n")
    databases = (home / "mlflow.db", home / "ui" / "users.db")
    with _written(databases[0]), _written(databases[1]):
        _alone("backup.sh", backup, home)
    assert not [file for file in backup.iterdir() if b"planted" in file.read_bytes()]
    runs, values, trained = _files(toy.home.runs), toy.values(), toy.trained()
    home.rename(tmp_path / "lost")
    _alone("restore.sh", backup, home)
    assert toy.values() == values
    assert _files(toy.home.runs) == runs
    assert (home / "mlartifacts" / "a.txt").read_text() == "artifact"
    for database in databases:
        with closing(sqlite3.connect(database)) as reader:
            assert reader.execute("SELECT number FROM kept").fetchall() == [(1,)]
    assert [file.name for file in (home / "ui").iterdir()] == ["users.db"]
    assert stat.S_IMODE((home / "ui").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "ui" / "users.db").stat().st_mode) == 0o600
    toy.run(**ONE_RUN)
    assert toy.trained() == trained


def _alone(script: str, backup: Path, home: Path) -> None:
    names = {"OPTUNA_DB", "MLFLOW_DB", "MLFLOW_AUTH_DB", "CARFT_BUCKET"}
    environ = {name: value for name, value in os.environ.items() if name not in names}
    environ |= {"CARFT_HOME": str(home), "PYTHON": sys.executable}
    done = ended(DOCKER / script, backup, environ=environ)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["backup.sh", "restore.sh"])
def test_how_it_is_called_is_said(script: str, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "CARFT_HOME"}
    for arguments, message in (
        ([], f"docker/{script} [--compose] FOLDER"),
        (["--compose"], f"docker/{script} [--compose] FOLDER"),
        ([str(tmp_path / "b")], "CARFT_HOME is not set"),
    ):
        done = ended(DOCKER / script, *arguments, environ=environ)
        assert done.returncode == 2
        assert message in done.stderr
    assert not list(tmp_path.iterdir())
