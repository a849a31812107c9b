"""A sweep whose trials are in PostgreSQL and whose runs are on a real server with passwords."""

from __future__ import annotations

import json

import pytest

from carft_sweep.sweeps.engines.local import InProcessEngine
from tests.services.mlflow_server import USER_PASSWORD, MlflowServer
from tests.services.postgres import Postgres
from tests.sweeps import toy_core
from tests.sweeps.conftest import ONE_RUN, Carft, ToySweep


@pytest.fixture
def served(
    toy: ToySweep, postgres: Postgres, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> ToySweep:
    """The toy core with everything around it as a team has it."""
    monkeypatch.setenv("CARFT_HOME", str(toy.home.path))
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", postgres.url(postgres.new_database()))
    for name, value in mlflow_server.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "served")
    engine = InProcessEngine(toy_core.ENTRY)
    monkeypatch.setattr("carft_sweep.sweeps.api.make_engine", lambda *_, **__: engine)
    return toy


def test_a_sweep_is_on_the_server_and_leaves_no_password_behind(
    served: ToySweep, mlflow_server: MlflowServer, postgres: Postgres, carft: Carft
) -> None:
    printed = carft("run", served.file(**ONE_RUN), "--json")
    assert "not in MLflow" not in printed.err
    assert json.loads(printed.out)["sweep"] == "toy", "MLflow prints nothing between"
    ids = "SELECT experiment_id FROM experiments WHERE name = 'served'"
    arms = "SELECT run_uuid FROM tags WHERE key = 'carft.kind' AND value = 'arm'"
    ended = f"SELECT status FROM runs WHERE experiment_id = ({ids}) AND run_uuid NOT IN ({arms})"
    statuses = postgres.sql(ended, mlflow_server.database)
    assert statuses == [("FINISHED",), ("FINISHED",)], "the sweep and its run"
    keys = mlflow_server.store.keys(mlflow_server.bucket)
    assert any(key.endswith("comparison.md") for key in keys)
    files = [path for path in served.home.path.rglob("*") if path.is_file()]
    contents = {str(path): path.read_bytes() for path in files}
    contents |= {"out": printed.out.encode(), "err": printed.err.encode()}
    tables = ("tags", "params", "experiment_tags")
    rows = [str(postgres.sql(f"SELECT * FROM {t}", mlflow_server.database)) for t in tables]
    contents |= dict(zip(tables, (row.encode() for row in rows), strict=True))
    for secret in (USER_PASSWORD, "open sesame", "open%20sesame", "open+sesame"):
        assert [name for name, content in contents.items() if secret.encode() in content] == []
