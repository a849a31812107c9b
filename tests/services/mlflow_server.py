"""MLflow's server as a team runs it: passwords, a PostgreSQL database, artifacts in S3."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.services.postgres import Postgres
from tests.services.processes import HOST, Service, end, environment, free_port, start
from tests.services.s3 import S3, answers

ADMIN, ADMIN_PASSWORD = "admin", "the admin's password"
USER, USER_PASSWORD = "ada", "a password: ada's"


@dataclass
class MlflowServer(Service):
    """The server at `address`; `database` and `bucket` are behind it."""

    address: str
    database: str
    bucket: str
    folder: Path
    store: S3
    command: list[str]
    variables: dict[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def environ(self) -> dict[str, str]:
        user = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": USER_PASSWORD}
        return {"MLFLOW_TRACKING_URI": self.address, **user}

    def start(self) -> None:
        log, environ = self.folder / "mlflow.log", environment(**self.variables)
        is_up = partial(answers, f"{self.address}/health")
        self.process = start(self.command, log, is_up, environ=environ, folder=self.folder)

    def stop(self) -> None:
        """End it with its workers; its database and bucket stay."""
        if self.process is not None:
            end(self.process)
            self.process = None

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Ask the REST API (`users/create`) as the administrator; its answer."""
        credentials = base64.b64encode(f"{ADMIN}:{ADMIN_PASSWORD}".encode()).decode()
        request = Request(
            f"{self.address}/api/2.0/mlflow/{path}",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Basic {credentials}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def new_user(self, name: str, password: str) -> None:
        """Somebody who may read everything and make experiments of their own."""
        self.post("users/create", {"username": name, "password": password})


@contextmanager
def running(postgres: Postgres, store: S3, folder: Path) -> Iterator[MlflowServer]:
    """The server for as long as it lasts, with an administrator and the user USER."""
    port = free_port()
    database, bucket = postgres.new_database(), store.new_bucket()
    config = folder / "basic_auth.ini"
    accounts = postgres.url(postgres.new_database()).replace("%", "%%")
    config.write_text(
        # Without the cache each request hashes the password again, which takes a core 0.1 s.
        "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\n"
        f"database_uri = {accounts}\nadmin_username = {ADMIN}\n"
    )
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", f"s3://{bucket}"]
    command += ["--allowed-hosts", f"{HOST}:{port}"]
    variables = {
        **store.environ,
        "MLFLOW_BACKEND_STORE_URI": postgres.url(database),
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of no use elsewhere",
        **{"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    }
    address = f"http://{HOST}:{port}"
    made = MlflowServer(address, database, bucket, folder, store, command, variables)
    made.start()
    try:
        made.new_user(USER, USER_PASSWORD)
        yield made
    finally:
        made.stop()
