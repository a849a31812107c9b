"""The scripts of docs/clusters, run as they stand on hosts that are namespaces of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.clusters import slurm as slurms
from tests.clusters.hosts import Host, hosts
from tests.clusters.slurm import Slurm
from tests.e2e.conftest import APART, LIMIT, ROOT, Tiny
from tests.e2e.conftest import images as images
from tests.e2e.conftest import tiny as tiny
from tests.services.mlflow_server import USER, USER_PASSWORD, MlflowServer
from tests.services.postgres import Postgres
from tests.services.processes import ended, environment

if TYPE_CHECKING:
    from tests.clusters.by_hand import Cluster

SCRIPTS = ROOT / "docs" / "clusters"
VENV = Path(sys.executable).parent.parent
"""Where carft-sweep is installed, as the scripts want to know it."""


def variables(sweep: Tiny, **more: str) -> dict[str, str]:
    """The environment of a user who calls a script: this clone, the sweep's home."""
    known = environment(
        VENV=str(VENV), CARFT_HOME=str(sweep.home), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"
    )
    return {name: value for name, value in known.items() if name not in APART} | more


def call(*words: str, environ: Mapping[str, str], folder: Path | None = None) -> str:
    done = ended(*words, environ=environ, folder=folder, limit=LIMIT, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def refused(script: str, *words: str, **environ: str) -> str:
    """What a script says at once that is called wrongly."""
    done = ended(SCRIPTS / script, *words, environ={**os.environ, **environ})
    assert done.returncode == 2, done.stderr
    return done.stderr


def state(sweep: Tiny) -> str:
    """`done`, `interrupted`, ..., as `list` tells it."""
    listed = call(str(VENV / "bin" / "carft-sweep"), "list", "--json", environ=variables(sweep))
    state: str = next(s["state"] for s in json.loads(listed) if s["name"] == sweep.file.stem)
    return state


def ran_on(runs: Sequence[Mapping[str, Any]]) -> set[str]:
    return {r["tags"]["carft.worker"].split(":")[1] for r in runs if "carft.worker" in r["tags"]}


@pytest.fixture(scope="session")
def machines() -> Iterator[list[Host]]:
    with hosts(["here", "n1", "n2"]) as made:
        yield made


@pytest.fixture(scope="session")
def slurm(machines: list[Host]) -> Iterator[Slurm]:
    """Slurm with a node on each of the other two."""
    if slurms.LACKS:
        pytest.skip(slurms.LACKS)
    with slurms.running(machines[0], machines[1:]) as made:
        yield made


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def cluster(
    machines: list[Host], secrets: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """One with both servers, on three hosts."""
    from tests.clusters import by_hand  # which needs this file

    home = tmp_path_factory.mktemp("shared") / "home"
    with by_hand.running(machines, home, **secrets) as made:
        yield made
