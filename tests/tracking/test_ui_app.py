"""Which of MLflow's routes `ui` serves, and that the others are closed on a server without
passwords. On one with passwords, behind nginx: test_team_server.py.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import mlflow
import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from mlflow.data.numpy_dataset import from_numpy
from mlflow.exceptions import MlflowException
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from carft_sweep.tracking.ui_app import OpenRoutes
from carft_sweep.tracking.ui_server import Server
from tests.tracking.mlflow_routes import OPEN, Route, answers, closed_paths, looked_at

CREATE = "/api/2.0/mlflow/experiments/create"
ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
MODEL = """
import mlflow

class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[str]) -> list[str]:
        return model_input

mlflow.models.set_model(Echo())
"""

pytestmark = pytest.mark.xdist_group("ui")  # which shares a server and MLflow's routes


def test_each_route_of_mlflow_was_looked_at_and_each_open_one_is_there(
    routes: frozenset[Route],
) -> None:
    new = sorted(route for route in routes if not looked_at(route))
    assert not new, (
        "MLflow has routes that nobody has looked at. They are closed. Where a page or MLflow's "
        "client needs one to show or record runs, and all that it does is that, list it in "
        "tracking/ui_app.py; else list it with the reason in tests/tracking/mlflow_routes.py, and "
        f"it stays closed: {new}"
    )
    existing = {Route(route.method, route.path.replace("/ajax-api/", "/api/")) for route in routes}
    gone = {route for route in OPEN if "/ajax-" not in route.path} - existing
    assert not gone, f"MLflow no longer has these: take them out of tracking/ui_app.py: {gone}"


def test_every_other_route_is_closed_and_no_other_spelling_leads_to_the_assistant(
    routes: frozenset[Route], server: Server
) -> None:
    paths = closed_paths(routes)
    assert {path for path in paths if path.startswith(ASSISTANT)}
    statuses = answers(server.address, paths)
    assert {route: status for route, status in statuses.items() if status != 404} == {}
    spellings = [
        f"{ASSISTANT}/config/",
        f"/{ASSISTANT}/config",
        ASSISTANT.replace("assistant", "%61ssistant") + "/config",
        f"/static-files/..{ASSISTANT}/config",
        f"/static-files/%2e%2e{ASSISTANT}/config",
        f"/api/2.0/mlflow-artifacts/artifacts/../../../..{ASSISTANT}/config",
    ]
    statuses = answers(server.address, spellings)
    assert {route.method for route, status in statuses.items() if status < 400} <= {"OPTIONS"}
    assert {route.path for route in statuses} == {*spellings}


def test_the_list_of_the_gateway_is_empty_and_nothing_is_sent_on(server: Server) -> None:
    proxy = f"{server.address}/ajax-api/2.0/mlflow/gateway-proxy"
    for place in ("api/2.0/endpoints/", "http://127.0.0.1:9/"):
        answer = requests.get(proxy, params={"gateway_path": place}, timeout=10)
        assert (answer.status_code, answer.json()) == (200, {"endpoints": []})
        assert requests.post(proxy, json={"gateway_path": place}, timeout=10).status_code == 404


def test_nobody_chooses_the_folder_that_the_server_reads(server: Server, tmp_path: Path) -> None:
    for key, twice in product(("artifact_location", "artifactLocation"), (False, True)):
        asked = {"name": f"of {key} {twice}", key: tmp_path.as_uri()}
        body = json.dumps(asked) if twice else asked
        answer = requests.post(f"{server.address}{CREATE}", json=body, timeout=10)
        assert answer.status_code == 400, (key, twice)
    with pytest.raises(MlflowException, match="and no artifact_location"):
        MlflowClient(server.address).create_experiment("theirs", str(tmp_path))


def test_what_users_of_mlflows_client_record_comes_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    client = MlflowClient()
    experiment = client.create_experiment("of a user", tags={"a": "b"})
    code = tmp_path / "model.py"
    code.write_text(MODEL)
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_params({"lr": 0.1})
        mlflow.log_metrics({"loss": 0.5}, step=1)
        mlflow.log_input(from_numpy(np.zeros(3), name="zeros"), "train")
        mlflow.log_text("kept", "note.txt")
        model = mlflow.pyfunc.log_model(
            name="echo", python_model=str(code), pip_requirements=[], registered_model_name="echo"
        )
    (row,) = client.search_runs([experiment], "metrics.loss < 1 AND params.lr = '0.1'")
    assert row.inputs is not None
    assert row.inputs.dataset_inputs[0].dataset.name == "zeros"
    assert [point.step for point in client.get_metric_history(row.info.run_id, "loss")] == [1]
    assert "note.txt" in [file.path for file in client.list_artifacts(row.info.run_id)]
    assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/note.txt") == "kept"
    assert [each.model_id for each in client.search_logged_models([experiment])] == [model.model_id]
    client.set_registered_model_alias("echo", "best", "1")
    client.set_model_version_tag("echo", "1", "a", "b")
    assert client.search_model_versions("name = 'echo'")[0].tags["a"] == "b"
    for uri in (model.model_uri, "models:/echo/1", "models:/echo@best"):
        assert mlflow.pyfunc.load_model(uri).predict(["x"]) == ["x"]
    client.delete_registered_model("echo")
    client.delete_run(row.info.run_id)
    client.delete_experiment(experiment)


def test_below_a_prefix_the_same_routes_are_open() -> None:
    async def mlflow(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("from MLflow")(scope, receive, send)

    client = TestClient(OpenRoutes(mlflow, prefix="/mlflow", origins=()))
    for path, status in (("/mlflow/health", 200), ("/mlflow/", 200), (f"/mlflow{ASSISTANT}", 404)):
        assert client.get(path).status_code == status
