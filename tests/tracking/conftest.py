"""MLflow stores for the tests: the schema is made once a session, and one server is started."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carft_sweep.tracking.location import stay_private
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from carft_sweep.tracking.ui_server import Server, serve
from tests.tracking.made_up import known
from tests.tracking.memory_store import MemoryTracker
from tests.tracking.mlflow_routes import Route, mlflow_routes
from tests.tracking.subjects import Subject, look_into_memory, look_into_mlflow

NewDatabase = Callable[[], str]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to create its tables takes seconds."""
    stay_private()
    file = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    MlflowStore(f"sqlite:///{file}", "none").check()
    return file


@pytest.fixture
def new_database(migrated: Path, tmp_path: Path) -> NewDatabase:
    """Gives the URI of a fresh database at each call."""

    def new() -> str:
        file = tmp_path / f"{uuid.uuid4().hex}.db"
        shutil.copy(migrated, file)
        return f"sqlite:///{file}"

    return new


@pytest.fixture(scope="session")
def server_home(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server has its database and its artifacts."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def server(server_home: Path) -> Iterator[Server]:
    """A real MLflow server, the only one that tests share, which ends with all its children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # MLflow's code, and slower with it
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # of another one
        running = serve(f"sqlite:///{server_home}/mlflow.db", server_home / "artifacts", port=0)
    yield running
    running.stop()
    running.stop()
    assert group_is_gone(known(running.process).pid)


def group_is_gone(leader: int) -> bool:
    """Whether all processes of a group end, within seconds."""
    for _ in range(50):
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="session")
def routes() -> frozenset[Route]:
    """Those of MLflow's own server: to list them takes seconds."""
    return mlflow_routes()


@pytest.fixture(params=["memory", "sqlite", "server"])
def subject(
    request: pytest.FixtureRequest, tmp_path: Path, new_database: NewDatabase
) -> Iterator[Subject]:
    """Every tracker there is."""
    kind: str = request.param
    experiment = f"test-{uuid.uuid4().hex}"
    if "memory" in kind:
        memory = MemoryTracker()
        made = Subject(memory, look_into_memory(memory))
    else:
        uri = request.getfixturevalue("server").address if kind == "server" else new_database()
        root = None if kind == "server" else tmp_path / "mlartifacts"
        made = Subject(MlflowStore(uri, experiment, root), look_into_mlflow(uri, experiment))
    yield made
    made.tracker.close()
