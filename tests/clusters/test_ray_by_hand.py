"""`start_head.sh` and `start_worker.sh`: a cluster of three hosts, with a firewall's fixed ports."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.clusters.conftest import SCRIPTS, VENV, call, variables
from tests.clusters.hosts import Host
from tests.e2e.conftest import MakeTiny, Tiny, make_tiny
from tests.e2e.test_things_go_wrong import end, until
from tests.services.mlflow_server import USER, USER_PASSWORD, MlflowServer
from tests.services.postgres import Postgres
from tests.services.processes import free_port

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(600)]
WEIGHTS = [0.0, 0.5, 1.0, 1.5]
OF_THE_HEAD = ("GCS_PORT", "DASHBOARD_PORT", "CLIENT_PORT")
OF_EVERY_NODE = (
    "NODE_MANAGER_PORT",
    "OBJECT_MANAGER_PORT",
    "RUNTIME_ENV_PORT",
    "AGENT_PORT",
    "AGENT_HTTP_PORT",
    "METRICS_PORT",
)


@dataclass(frozen=True)
class Cluster:
    """One that the scripts have started, and the environment of who uses it on the head."""

    head: str
    workers: list[Host]
    environ: dict[str, str]
    scratch: Path

    def start_worker(self, host: Host) -> str:
        """Let a host join, as `ssh HOST start_worker.sh` does."""
        script = str(SCRIPTS / "start_worker.sh")
        return call(*host.command(script, "--num-cpus", "1"), environ=self.on(host))

    def on(self, host: Host) -> dict[str, str]:
        """The environment there: a machine of its own has the ports of cluster.env to itself."""
        known = {**self.environ, "RAY_SCRATCH": str(self.scratch / host.name)}
        taken = () if host.inside else OF_EVERY_NODE
        return known | {name: str(free_port()) for name in taken}

    def processes(self, host: str) -> list[int]:
        """Of Ray on one host, known by its folder."""
        found = []
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                told = command.read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            if f"{self.scratch / host}/".encode() in told:
                found.append(int(command.parent.name))
        return found


@pytest.fixture(scope="module")
def secrets(
    tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, mlflow_server: MlflowServer
) -> dict[str, str]:
    """The variables of cluster.env that name a server, a database and files of secrets."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "mlflow-password").write_text(USER_PASSWORD + "\n")
    (folder / "optuna-url").write_text(postgres.url(postgres.new_database()) + "\n")
    return {
        "MLFLOW_TRACKING_URI": mlflow_server.address,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD_FILE": str(folder / "mlflow-password"),
        "CARFT_OPTUNA_STORAGE_FILE": str(folder / "optuna-url"),
    }
