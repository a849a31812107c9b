"""The scripts inside the containers, run as compose.yaml runs them: on a real PostgreSQL, a store
with the S3 API, and MLflow's server in front of both.
"""

from __future__ import annotations

import base64
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psycopg
import pytest
from urllib3.util.connection import create_connection

from tests.docker.composed import DOCKER, composed, services
from tests.services.postgres import ADMIN, ADMIN_PASSWORD, PROGRAMS, Postgres
from tests.services.processes import HOST, end, ended, free_port, start
from tests.services.s3 import S3, answers

DATABASES = ("optuna", "mlflow", "mlflow_auth")


@dataclass(frozen=True)
class Stack:
    """Where here is what compose.yaml calls postgres, s3, mlflow and /run/secrets."""

    postgres: Postgres
    store: S3
    secrets: Path
    port: int
    log: Path

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().rstrip("\n")

    def local(self, text: str) -> str:
        """A word of compose.yaml, as it must be on this machine."""
        for name, made in composed()["secrets"].items():
            text = text.replace(f"/run/secrets/{name}", str(self.secrets / Path(made["file"]).name))
        text = text.replace("http://s3:8333", self.store.address)
        text = text.replace("http://mlflow:5000", self.address)
        return text.replace("/opt/carft/", f"{DOCKER}/")

    def command(self, service: str) -> tuple[list[str], dict[str, str]]:
        """What the service runs, through the image's entry point, and its environment."""
        definition = services()[service]
        words = [str(DOCKER / "server" / "entrypoint.sh"), *map(self.local, definition["command"])]
        variables = {name: self.local(value) for name, value in definition["environment"].items()}
        if "PGHOST" in variables:
            variables |= {"PGHOST": HOST, "PGPORT": str(self.postgres.port)}
        own = Path(sys.executable).parent
        path = f"{own}:{PROGRAMS[-1]}:{os.environ['PATH']}"
        return words, {"PATH": path, "HOME": str(self.log.parent), **variables}

    def run(self, service: str) -> subprocess.CompletedProcess[str]:
        words, environ = self.command(service)
        return ended(*words, environ=environ)

    def make_databases(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """As PostgreSQL's image runs what is mounted for a new volume."""
        own = {"PATH": f"{PROGRAMS[-1]}:{os.environ['PATH']}", "POSTGRES_USER": ADMIN}
        own |= {"PGHOST": HOST, "PGPORT": str(self.postgres.port), "PGPASSWORD": ADMIN_PASSWORD}
        values = services()["postgres"]["environment"].items()
        environ = own | {name: self.local(value) for name, value in values} | variables
        return ended(DOCKER / "postgres" / "10-databases.sh", environ=environ)


@pytest.fixture(scope="module")
def stack(postgres: Postgres, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With fresh secrets and what the one-shot services make, in their order; nothing serves."""
    folder = tmp_path_factory.mktemp("stack")
    made = Stack(postgres, s3, folder / "secrets", free_port(), folder / "mlflow.log")
    subprocess.run([DOCKER / "make-secrets.sh", made.secrets], check=True, timeout=30)
    try:
        for done in (made.make_databases(), made.run("s3-bucket"), made.run("mlflow-migrate")):
            assert done.returncode == 0, done.stderr
        yield made
    finally:
        for database in DATABASES:
            postgres.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        postgres.sql("DROP ROLE IF EXISTS optuna, mlflow")


@pytest.fixture(scope="module")
def served(stack: Stack) -> Iterator[Stack]:
    """MLflow's server serves, and the sweeps' user is there."""
    words, environ = stack.command("mlflow")
    changed = {"--host=0.0.0.0": f"--host={HOST}", "--port=5000": f"--port={stack.port}"}
    changed |= {"--workers=2": "--workers=1"}
    assert {*changed} <= {*words}
    words, folder = [changed.get(word, word) for word in words], stack.log.parent
    is_up = functools.partial(answers, f"{stack.address}/health")
    process = start(words, stack.log, is_up, environ=environ, folder=folder)
    try:
        done = stack.run("mlflow-user")
        assert done.returncode == 0, done.stderr
        yield stack
    finally:
        end(process)


USERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "optuna": ("optuna_password", ("optuna",)),
    "mlflow": ("mlflow_db_password", ("mlflow", "mlflow_auth")),
}


@pytest.mark.parametrize("user", USERS)
def test_a_user_of_a_database_gets_into_its_own_and_no_other(stack: Stack, user: str) -> None:
    secret, own = USERS[user]
    at = f"host={HOST} port={stack.postgres.port} user={user} connect_timeout=10"
    for database in DATABASES:
        if database in own:
            with psycopg.connect(at, dbname=database, password=stack.secret(secret)) as connection:
                connection.execute("CREATE TABLE probe (a int)")
                connection.rollback()
        else:
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(at, dbname=database, password=stack.secret(secret))


def test_what_is_there_is_not_made_again_and_no_database_without_a_password(stack: Stack) -> None:
    def passwords() -> list[tuple[object, ...]]:
        return stack.postgres.sql("SELECT rolname, rolpassword FROM pg_authid ORDER BY rolname")

    before = passwords()
    again = stack.make_databases(OPTUNA_PASSWORD_FILE=str(stack.secrets / "ray_token"))
    assert (again.returncode, again.stderr) == (0, "")
    assert passwords() == before
    done = stack.make_databases(MLFLOW_PASSWORD_FILE="/nowhere")
    assert done.returncode != 0
    assert "MLFLOW_PASSWORD_FILE cannot be read" in done.stderr
    again = stack.run("s3-bucket")
    assert (again.returncode, again.stdout) == (0, "the bucket mlflow is there\n")


def test_tables_are_where_they_belong(served: Stack) -> None:
    assert {"runs", "metrics", "alembic_version"} <= served.postgres.tables("mlflow")
    assert {"users", "alembic_version_auth"} <= served.postgres.tables("mlflow_auth")
    assert served.postgres.tables("optuna") == set()


def ask(stack: Stack, path: str, user: str = "", secret: str = "", **headers: str) -> int:
    if user:
        pair = f"{user}:{stack.secret(secret)}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    try:
        with urlopen(Request(f"{stack.address}{path}", headers=headers), timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def test_the_server_asks_for_a_password_and_for_its_own_name_and_acts_for_nobody(
    served: Stack,
) -> None:
    user, admin = ("sweeps", "mlflow_user_password"), ("admin", "mlflow_admin_password")
    for status, credentials, host in (
        (401, (), ""),
        (401, ("sweeps", "ray_token"), ""),
        (200, user, ""),
        (200, admin, ""),
        (403, admin, "elsewhere.example"),
        (200, admin, "mlflow:5000"),
    ):
        headers = {"Host": host} if host else {}
        assert ask(served, SEARCH, *credentials, **headers) == status, (credentials, host)
    assert ask(served, "/api/2.0/mlflow/users/get?username=admin", *user) == 403
    for path in ("assistant/config", "gateway/secrets/list", "webhooks"):
        assert ask(served, f"/ajax-api/3.0/mlflow/{path}", *admin) == 404


def test_the_health_check_knows_a_server_that_serves(served: Stack) -> None:
    def check(address: str) -> int:
        words = services()["mlflow"]["healthcheck"]["test"][1:]
        words = [served.local(word).replace("http://127.0.0.1:5000", address) for word in words]
        return subprocess.run([sys.executable, *words[1:]], timeout=30, check=False).returncode

    assert check(served.address) == 0
    assert check(f"http://{HOST}:{free_port()}") == 1


def test_artifacts_of_the_sweeps_user_go_through_the_server_into_the_store(
    served: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "sweeps")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", served.secret("mlflow_user_password"))
    client = MlflowClient(served.address)
    run = client.create_run(client.create_experiment("stack")).info
    client.log_text(run.run_id, "kept", "note.txt")
    assert [key for key in served.store.keys("mlflow") if key.endswith("/note.txt")]
    store = urlsplit(served.store.address).port

    def reach(address: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
        assert address[1] != store, "no node and nobody outside is in the network of the store"
        return create_connection(address, *rest, **more)

    monkeypatch.setattr("urllib3.util.connection.create_connection", reach)
    file = client.download_artifacts(run.run_id, "note.txt", str(tmp_path))
    assert Path(file).read_text() == "kept"


def test_the_server_logs_no_secret(served: Stack) -> None:
    log = served.log.read_text()
    assert log
    for file in served.secrets.iterdir():
        words = [word for word in file.read_text().split() if len(word) >= 20]
        assert not [word for word in words if word.strip('",}]') in log], file.name


def test_the_same_user_again_and_a_refused_one(served: Stack) -> None:
    again = served.run("mlflow-user")
    assert (again.returncode, again.stdout) == (0, "the user sweeps is there\n")
    words, environ = served.command("mlflow-user")
    environ["MLFLOW_TRACKING_PASSWORD_FILE"] = str(served.secrets / "ray_token")
    refused = ended(*words, environ=environ)
    assert refused.returncode == 1
    assert refused.stderr.startswith("the user sweeps cannot be made: HTTP Error 401")


@pytest.mark.slow
def test_a_second_migration_changes_nothing(served: Stack) -> None:
    before = [served.postgres.tables(database) for database in DATABASES]
    again = served.run("mlflow-migrate")
    assert again.returncode == 0, again.stderr
    assert [served.postgres.tables(database) for database in DATABASES] == before
    assert ask(served, SEARCH, "sweeps", "mlflow_user_password") == 200
