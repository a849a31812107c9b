"""The whole of it: a sweep submitted from outside to three hosts, one of which is killed, that ends
as the same sweep on one machine does, with every run and file in a server with passwords.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import requests

from carft_sweep.carft_core.files import read_json
from tests.clusters.by_hand import Cluster
from tests.clusters.conftest import VENV, call, variables
from tests.clusters.hosts import Host
from tests.e2e.conftest import LIMIT, Tiny, make_tiny, repeatable
from tests.services.mlflow_server import USER_PASSWORD, MlflowServer

pytestmark = [
    pytest.mark.slow,  # minutes, in which Ray sees that a node is gone
    pytest.mark.xdist_group("services"),
    pytest.mark.timeout(600),
]
EPOCHS = 30
WEIGHTS = [0.0, 0.5, 1.0, 1.5]
MINE = """
from typing import ClassVar

from carft_sweep import ALGORITHMS
from carft_sweep.carft_core.algorithms.car_ft import CarFt


@ALGORITHMS.register
class Mine(CarFt):
    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = "CAR-FT by another name"
"""


@pytest.fixture
def project(tmp_path: Path, tiny_clip_files: Path, images: Path) -> Tiny:
    """A user's repository: a sweep file and an own algorithm, on a machine without the home."""
    folder = tmp_path / "project"
    folder.mkdir()
    make = make_tiny(folder, tiny_clip_files, images)
    (folder / "mine.py").write_text(MINE)
    own = {"import": ["./mine.py"], "algorithm": {"name": "mine"}}
    made = make("outside", WEIGHTS, home=tmp_path / "local", epochs=EPOCHS, parallel=2, **own)
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "first")):
        subprocess.run([*git, *words], cwd=made.file.parent, check=True)
    return made


def outside(cluster: Cluster) -> dict[str, str]:
    """What the user's machine knows: Ray's dashboard, through a tunnel, and its token."""
    known = variables(Tiny(Path(), Path("/nowhere")))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "CARFT_HOME"):
        known.pop(name, None)
    address = f"http://127.0.0.1:{cluster.environ['DASHBOARD_PORT']}"
    token = Path(cluster.environ["CARFT_HOME"]) / "ray-token"
    return known | {
        # Secrets that are not sent: the cluster has them by file.
        "MLFLOW_TRACKING_PASSWORD": USER_PASSWORD,
        "CARFT_OPTUNA_STORAGE": optuna_url(cluster),
        "RAY_API_SERVER_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token.read_text(),
        "CARFT_HOME": cluster.environ["CARFT_HOME"],
    }


def optuna_url(cluster: Cluster) -> str:
    return Path(cluster.environ["CARFT_OPTUNA_STORAGE_FILE"]).read_text().strip()


FILES = """
import json, sys
from mlflow import MlflowClient
client, sweep = MlflowClient(sys.argv[1]), sys.argv[2]
experiment = client.get_experiment_by_name("carft-sweep").experiment_id
def files(run, path=None):
    for item in client.list_artifacts(run, path):
        yield from files(run, item.path) if item.is_dir else [item.path]
of_sweep = f"tags.`carft.sweep` = '{sweep}' and tags.`carft.kind` != 'arm'"
runs = client.search_runs([experiment], of_sweep)
by_run = {run.info.run_name: (run.info.status, sorted(files(run.info.run_id))) for run in runs}
print(json.dumps(by_run))
"""


def files_by_run(uri: str, sweep: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Of each run in an MLflow its status and the names of its files."""
    done = call(str(VENV / "bin" / "python"), "-c", FILES, uri, sweep, environ=environ)
    by_run: dict[str, Any] = json.loads(done.splitlines()[-1])
    return by_run


def test_it_ends_as_a_local_one_though_a_node_is_killed(
    cluster: Cluster, project: Tiny, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    python, name = str(VENV / "bin" / "python"), project.file.stem
    on_cluster = replace(project, home=Path(cluster.environ["CARFT_HOME"]))
    with (tmp_path / "output").open("w+") as log:
        words, folder = ("-m", "carft_sweep", "submit", project.file.name), project.file.parent
        process = subprocess.Popen(
            [python, *words], cwd=folder, env=outside(cluster), stdout=log, stderr=log
        )
        while (node := training(cluster, name)) is None and process.poll() is None:
            time.sleep(0.05)
        assert node is not None, (tmp_path / "output").read_text()
        cluster.kill(node)
        assert process.wait(LIMIT) == 0, (tmp_path / "output").read_text()
        output = (tmp_path / "output").read_text()
    assert "Traceback" not in output
    assert "preempted" in output

    project.call("run", "--engine", "local", "--set", "parallel=null")
    assert compared(on_cluster, cluster.environ) == compared(project, {})

    path = {"PATH": os.environ["PATH"]}
    ours = files_by_run(f"sqlite:///{project.home / 'mlflow.db'}", name, path)
    theirs = files_by_run(mlflow_server.address, name, {**mlflow_server.environ, **path})
    assert len(theirs) == 2 + len(WEIGHTS)  # and the sweep, and the zero-shot model
    assert theirs == ours

    url = optuna_url(cluster)
    (study,) = (study for study in optuna.get_all_study_names(url) if name in study)
    states = [trial.state.name for trial in optuna.load_study(study_name=study, storage=url).trials]
    assert states == ["COMPLETE"] * len(WEIGHTS)

    environ = outside(cluster)
    token, url_of_jobs = environ["RAY_AUTH_TOKEN"], f"{environ['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    headers = {"Authorization": f"Bearer {token}"}
    shown = requests.get(url_of_jobs, headers=headers, timeout=30).text
    assert name in shown
    for secret in (url, USER_PASSWORD, token):
        assert secret not in output + shown
    written = [path for at in (on_cluster.home, cluster.scratch) for path in at.rglob("*")]
    assert [path for path in written if path.is_file() and has(path, url)] == []


def has(path: Path, secret: str) -> bool:
    return secret.encode() in path.read_bytes() or USER_PASSWORD.encode() in path.read_bytes()


def training(cluster: Cluster, sweep: str) -> Host | None:
    """A host that is in the first half of a run of the sweep."""
    for folder in Path(cluster.environ["CARFT_HOME"]).glob("runs/*"):
        run, epochs = (read_json(folder / name) for name in ("run.json", "history.json"))
        if run is None or (run["sweep"], run["state"]) != (sweep, "running"):
            continue
        if 1 <= len(epochs or ()) < EPOCHS / 2:
            return cluster.host_of(int(run["worker"].rpartition(":")[2]))
    return None


def compared(sweep: Tiny, environ: dict[str, Any]) -> Any:
    """The comparison as `compare --json` tells it, but for times."""
    comparison = json.loads(sweep.call("compare", "--json", **environ)[0])
    for row in comparison["rows"]:
        row["metrics"] = repeatable(row["metrics"])
    return comparison
