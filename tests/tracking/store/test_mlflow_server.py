"""A real MLflow server with passwords, before PostgreSQL and an S3 store, and what goes wrong."""

from __future__ import annotations

import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient

from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable, TrackingError
from carft_sweep.tracking.mlflow_reader import MlflowReader
from carft_sweep.tracking.store.base import RunKey, RunStart
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from tests.services.answering import Answer, answering
from tests.services.mlflow_server import USER, MlflowServer
from tests.services.postgres import Postgres
from tests.tracking.made_up import known

SWEEP = RunKey("toy")
PARENT = RunStart(SWEEP, "toy", 1)
PASSWORD = "s3cret of ours"


@pytest.fixture(autouse=True)
def credentials(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's; tests set others."""
    for name, value in mlflow_server.environ.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def experiment() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def note(tmp_path: Path) -> Path:
    file = tmp_path / "note.txt"
    file.write_text("kept")
    return file


@pytest.fixture
def store(mlflow_server: MlflowServer, experiment: str) -> MlflowStore:
    return MlflowStore(mlflow_server.address, experiment)


def refused(act: Callable[[], object], kind: type[Exception], expected: str) -> None:
    """It is said within seconds, by an error of exactly this kind, without a password."""
    start = time.monotonic()
    with pytest.raises(kind, match=expected) as caught:
        act()
    assert time.monotonic() - start < 10
    assert type(caught.value) is kind
    assert not re.search(f"{PASSWORD}|sesame", str(caught.value))


def test_a_server_that_takes_runs_is_reached_and_gets_them(
    mlflow_server: MlflowServer, store: MlflowStore, experiment: str, note: Path
) -> None:
    store.preflight()
    store.start_run(PARENT)
    store.log_artifact(SWEEP, note)
    keys = mlflow_server.store.keys(mlflow_server.bucket)
    own = f"{store.run_id(SWEEP)}/artifacts/note.txt"
    assert [key for key in keys if key.endswith(own)]
    stored = known(MlflowClient(mlflow_server.address).get_experiment_by_name(experiment))
    assert stored.tags["carft.written_by"].startswith("mlflow 3")


def test_who_may_only_read_a_wrong_host_and_a_wrong_password_are_told_before_a_run_is_opened(
    mlflow_server: MlflowServer,
    store: MlflowStore,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlflow_server.post("experiments/create", {"name": experiment})
    store.check()
    refused(store.preflight, AccessDenied, r"Permission denied.*EDIT on the experiment")
    other = MlflowStore(mlflow_server.address.replace("127.0.0.1", "localhost"), experiment)
    refused(other.preflight, AccessDenied, r"Invalid Host.*--allowed-hosts")
    store = MlflowStore(mlflow_server.address, experiment)  # which knows nothing yet
    for user, password in ((USER, PASSWORD), ("nobody", PASSWORD), ("", "")):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        refused(store.preflight, AccessDenied, r"denied access.*Set MLFLOW_TRACKING_USERNAME and")
        refused(lambda: store.start_run(PARENT), AccessDenied, "denied access")
        read = partial(MlflowReader, mlflow_server.address, experiment)
        refused(read, AccessDenied, "denied access")


def test_a_server_that_says_nothing_is_not_waited_for(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carft_sweep.tracking.store.mlflow_client.PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        store = MlflowStore(f"http://127.0.0.1:{server.getsockname()[1]}", experiment)
        refused(store.preflight, ServiceUnreachable, "does not answer: .*timed out")


@pytest.mark.parametrize("version", ["2.22.0", "4.0.0rc1"])
def test_another_major_version_is_refused(experiment: str, version: str) -> None:
    with answering(lambda _: Answer(version)) as uri:
        preflight = MlflowStore(uri, experiment).preflight
        refused(preflight, TrackingError, rf"is version {version}, and here")


def assert_in_time(call: Callable[[], None], seconds: float = 10.0) -> None:
    """What came back may refuse the first connection."""
    until = time.monotonic() + seconds
    while True:
        try:
            return call()
        except ServiceUnreachable:
            assert time.monotonic() < until
            time.sleep(0.2)


def test_a_missing_bucket_loses_no_file(
    mlflow_server: MlflowServer, store: MlflowStore, note: Path
) -> None:
    """The server answers 500 and answers everything else: the record is not to blame for it."""
    store.start_run(PARENT)
    s3, bucket = mlflow_server.store.client(), mlflow_server.bucket
    for key in mlflow_server.store.keys(bucket):
        s3.delete_object(Bucket=bucket, Key=key)
    s3.delete_bucket(Bucket=bucket)
    expected = r"artifact store .*--artifacts-destination and its log"
    try:
        refused(store.preflight, ServiceUnreachable, f"bucket does not exist.*|{expected}")
        with suppress(ServiceUnreachable):  # the server has closed what was idle meanwhile
            store.set_tags(SWEEP, {"told": "meanwhile"})
        refused(lambda: store.log_artifact(SWEEP, note), ServiceUnreachable, expected)
    finally:
        s3.create_bucket(Bucket=bucket)
    assert_in_time(lambda: store.log_artifact(SWEEP, note))
    assert any(key.endswith("note.txt") for key in mlflow_server.store.keys(bucket))


def test_an_s3_store_without_keys_of_ours_is_no_fault_of_the_record(
    mlflow_server: MlflowServer,
    store: MlflowStore,
    experiment: str,
    note: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An experiment whose files the client takes to the bucket itself."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(f"AWS_{name}", f"{note}.none")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", mlflow_server.store.address)
    place = f"s3://{mlflow_server.bucket}/own"
    MlflowClient(mlflow_server.address).create_experiment(experiment, artifact_location=place)
    store.preflight()
    store.start_run(PARENT)
    expected = "its keys in the environment"
    refused(lambda: store.log_artifact(SWEEP, note), ServiceUnreachable, expected)


@pytest.fixture
def direct(
    mlflow_server: MlflowServer, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The name of a database of MLflow's own that clients open themselves."""
    for name in mlflow_server.environ:
        monkeypatch.delenv(name)
    name = postgres.new_database(mlflow_server.database)
    yield name
    postgres.send_away(name)


ACCESS = "MLflow's database at .*check user and password in MLFLOW_TRACKING_URI"
NAMED = "does not answer: .*; MLFLOW_TRACKING_URI names it"
RIGHTS = "permission denied for table alembic_version"


@pytest.mark.parametrize(
    ("make_url", "kind", "expected"),
    [
        (lambda own, name: own.url(name, password=PASSWORD), AccessDenied, ACCESS),
        (lambda own, _: own.url("nowhere"), TrackingError, "does not exist"),
        (lambda *_: f"postgresql://u:{PASSWORD}@no-such-host.invalid/x", ServiceUnreachable, NAMED),
        (
            lambda *_: f"postgresql://u:{PASSWORD}@127.0.0.1:9/x",
            ServiceUnreachable,
            "does not answer",
        ),
        (lambda own, name: own.url(name, own.new_user(PASSWORD), PASSWORD), TrackingError, RIGHTS),
    ],
    ids=["wrong password", "missing", "unknown host", "down", "no rights"],
)
def test_a_database_of_mlflows_says_what_is_wrong(
    postgres: Postgres,
    direct: str,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
    make_url: Callable[[Postgres, str], str],
    kind: type[Exception],
    expected: str,
) -> None:
    url = make_url(postgres, direct)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    refused(MlflowStore(url, experiment).preflight, kind, expected)


@pytest.mark.parametrize(
    ("revision", "expected"),
    [("451aebb31d03", "mlflow db upgrade postgresql://127"), ("feedbeef0000", "newer version")],
)
def test_the_schema_of_another_mlflow_is_left_as_it_is(
    postgres: Postgres, direct: str, experiment: str, revision: str, expected: str
) -> None:
    postgres.sql(f"UPDATE alembic_version SET version_num = '{revision}'", direct)
    store = MlflowStore(postgres.url(direct), experiment)
    refused(store.preflight, TrackingError, expected)
    assert postgres.sql("SELECT version_num FROM alembic_version", direct) == [(revision,)]


def test_a_database_that_goes_away_meanwhile_loses_nothing(
    postgres: Postgres, direct: str, experiment: str, tmp_path: Path
) -> None:
    store = MlflowStore(postgres.url(direct), experiment, tmp_path / "artifacts")
    store.preflight()
    store.start_run(PARENT)
    with postgres.away(), pytest.raises(ServiceUnreachable):
        store.set_tags(SWEEP, {"told": "meanwhile"})
    assert_in_time(lambda: store.set_tags(SWEEP, {"told": "meanwhile"}))
    run = MlflowClient(postgres.url(direct)).get_run(str(store.run_id(SWEEP)))
    assert run.data.tags["told"] == "meanwhile"
