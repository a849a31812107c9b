"""MLflow, what it and Optuna were sent and the job API of Ray, as the doctor sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from carft_sweep.sweeps.doctor.checks import Level
from carft_sweep.sweeps.engines import ray_tokens
from carft_sweep.sweeps.ledger.claim import Claim
from carft_sweep.sweeps.submit.client import JOBS_VARIABLE
from tests.services.answering import Answer, Asked, answering
from tests.services.mlflow_server import ADMIN, ADMIN_PASSWORD, USER_PASSWORD, MlflowServer
from tests.services.processes import free_port
from tests.sweeps.conftest import Carft, ToySweep
from tests.sweeps.doctor.findings import look, only

Tell = Callable[[dict[str, Answer]], None]


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a server nor a database is named."""
    for name in ("MLFLOW_TRACKING_URI", "CARFT_OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """The environment names it and its user."""
    for name, value in mlflow_server.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "the doctor's")
    return mlflow_server


@pytest.fixture
def client(server: MlflowServer) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server.address)


def test_a_server_is_checked_without_a_trace(
    server: MlflowServer, client: Any, tmp_path: Path
) -> None:
    assert "answers, experiment the doctor's" in only(look("mlflow.place", tmp_path), "ok")
    assert "the first run makes" in only(look("mlflow.credentials", tmp_path), "ok")
    assert "check again after" in only(look("mlflow.artifacts", tmp_path), "warning")
    experiment = client.create_experiment("the doctor's")
    assert "has the experiment the doctor's" in only(look("mlflow.credentials", tmp_path), "ok")
    message = only(look("mlflow.artifacts", tmp_path), "ok")
    assert f"a small file went to mlflow-artifacts:/{experiment} and back" in message
    assert "and was removed" in message
    keys = server.store.keys(server.bucket)
    assert [key for key in keys if key.startswith(f"{experiment}/")] == []
    assert client.search_runs([experiment]) == []
    assert "the server is MLflow 3" in only(look("mlflow.version", tmp_path), "ok")


def test_the_command_says_what_is_wrong_once_with_what_to_do_and_no_password(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    doctor = ["--home", str(tmp_path), "doctor", "mlflow"]
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_PASSWORD", f"{USER_PASSWORD} and more")
        printed = carft(*doctor, code=2).out
    assert printed.count("rejected the user name or password") == 1
    assert "MLFLOW_TRACKING_PASSWORD_FILE" in printed
    assert USER_PASSWORD not in printed
    port = urlsplit(server.address).port
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://localhost:{port}")
    assert f"start it with --allowed-hosts localhost:{port}" in carft(*doctor, code=2).out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    (check,) = carft(*doctor, "--json", code=4).json["checks"]
    assert (check["check"], check["level"]) == ("mlflow.place", "unreachable")
    assert "wait in the home" in check["advice"]


def test_an_experiment_of_somebody_else_is_told(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "the admin's")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN_PASSWORD)
        client.create_experiment("the admin's")
    message = only(look("mlflow.artifacts", tmp_path), "wrong")
    assert "may not write into the experiment the admin's (403)" in message


def test_a_bucket_that_is_gone_is_told(server: MlflowServer, client: Any, tmp_path: Path) -> None:
    if client.get_experiment_by_name("the doctor's") is None:
        client.create_experiment("the doctor's")
    s3 = server.store.client()
    for key in server.store.keys(server.bucket):
        s3.delete_object(Bucket=server.bucket, Key=key)
    s3.delete_bucket(Bucket=server.bucket)
    try:
        message = only(look("mlflow.artifacts", tmp_path), "unreachable")
    finally:
        s3.create_bucket(Bucket=server.bucket)
    assert "the artifact store" in message
    assert "bucket" in message


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tell]:
    """A server that answers as it is told, in the place of MLflow's: by path."""
    answers: dict[str, Answer] = {}

    def answer(asked: Asked) -> Answer:
        path = asked.path.partition("?")[0]
        return answers.get(f"{asked.headers.get('Origin', '')}{path}") or answers[path]

    def tell(by_path: dict[str, Answer]) -> None:
        answers.clear()
        answers.update({"/health": Answer("OK"), **by_path})

    with answering(answer) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield tell


NAMED = "/api/2.0/mlflow/experiments/get-by-name"


def experiment(**fields: str) -> Answer:
    return Answer({"experiment": {"lifecycle_stage": "active", "experiment_id": "7", **fields}})


DELETED = experiment(lifecycle_stage="deleted")


@pytest.mark.parametrize(
    ("path", "answer", "check", "level", "text"),
    [
        ("/health", Answer("<html>"), "place", "wrong", "as no MLflow does"),
        ("/health", Answer("Bad", 502), "place", "unreachable", "what is behind it is away"),
        ("/version", Answer("2.9.1"), "version", "wrong", "major"),
        ("/version", Answer("3.1.0"), "version", "warning", "older"),
        (NAMED, DELETED, "credentials", "wrong", "restore --experiment-id 7"),
        (NAMED, Answer("Go away", 403), "credentials", "wrong", "answers 403: Go away"),
        (NAMED, Answer("Overloaded", 503), "credentials", "unreachable", "answers 503"),
    ],
)
def test_what_is_wrong_with_a_server_is_told(
    stand_in: Tell, tmp_path: Path, path: str, answer: Answer, check: str, level: Level, text: str
) -> None:
    stand_in({path: answer})
    assert text in only(look(f"mlflow.{check}", tmp_path), level)


def test_artifacts_that_would_stay_on_this_machine_are_told_and_what_is_not_known_is_not(
    stand_in: Tell, tmp_path: Path
) -> None:
    place = tmp_path / "mlartifacts"
    stand_in({NAMED: experiment(artifact_location=str(place))})
    message = only(look("mlflow.artifacts", tmp_path), "warning")
    assert f"go to {place} on whichever machine sends them" in message
    assert not place.exists()
    theirs = experiment(artifact_location="/srv/mlruns/0")
    stand_in({NAMED: Answer("", 404), NAMED.removesuffix("-by-name"): theirs})
    assert look("mlflow.artifacts", tmp_path) == []
    stand_in({"/version": Answer("no", 401)})
    assert look("mlflow.version", tmp_path) == []


def test_runs_that_the_server_lacks_are_counted_by_sweep(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("carft_sweep.sweeps.doctor.services._recorded", lambda *_: toy.tracker)
    home = toy.home.path
    assert look("sent.runs", home) == []
    toy.run()
    assert "every run is recorded, in its state" in only(look("sent.runs", home), "ok")
    for file in toy.home.sweep("toy").glob("sent/*"):
        file.unlink()
    message = only(look("sent.runs", home), "warning")
    sync = f"carft-sweep sync --home {home}"
    assert message == f"7 of the runs of toy are not recorded as here -> {sync}"
    with Claim(toy.home.sweep("toy")):
        assert look("sent.runs", home) == [], "its driver sends them"
    toy.run()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:5000")
    assert "7 of the runs of toy" in only(look("sent.runs", home), "warning"), "of another server"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Answer]]:
    """A job API that answers what it is told, by path."""
    answers = {"/api/version": Answer({"ray_version": "2.60.0", "version": "4"})}

    def answer(asked: Asked) -> Answer:
        lets_in = "authorization" in map(str.lower, asked.headers) or asked.path != "/api/jobs/"
        return answers.get(asked.path, Answer([]) if lets_in else Answer("", 401))

    reset = ray_tokens._read_anew
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 32)
    reset()
    with answering(answer) as address:
        monkeypatch.setenv(JOBS_VARIABLE, f"{address}/")
        yield answers
    monkeypatch.delenv("RAY_AUTH_MODE")
    reset()


def test_the_job_api_is_asked_where_it_is_named(
    api: dict[str, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "answers, Ray 2.60.0" in only(look("ray.jobs", tmp_path), "ok")
    api["/api/jobs/"] = Answer([])
    answers, is_open = look("ray.jobs", tmp_path)
    assert (answers.level, is_open.level) == ("ok", "warning")
    assert "takes jobs from whoever reaches it" in is_open.message
    fine = api["/api/version"]
    wrong: list[tuple[Answer, Answer, Level, str]] = [
        (Answer({"ray_version": "2.51.0"}), Answer([]), "wrong", "the cluster has Ray 2.51.0"),
        (fine, Answer("Unauthorized", 401), "wrong", "Authentication required"),
        (Answer("", 503), Answer([]), "unreachable", "answers 503"),
    ]
    for api["/api/version"], api["/api/jobs/"], level, fragment in wrong:
        assert fragment in only(look("ray.jobs", tmp_path), level)
    monkeypatch.setenv(JOBS_VARIABLE, "head:6379")
    assert "give --address http://HOST:8265" in only(look("ray.jobs", tmp_path), "wrong")
    monkeypatch.delenv(JOBS_VARIABLE)
    assert look("ray.jobs", tmp_path) == []
