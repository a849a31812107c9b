"""A comparison from an MLflow server is the one from the home, and says what it could not read."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from carft_sweep.sweeps.cli import main
from carft_sweep.tracking import mlflow_reader
from carft_sweep.tracking.comparison.input_file import COMPARISON_INPUT
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.mlflow_reader import MlflowReader
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from carft_sweep.tracking.ui_server import Server
from tests.sweeps.conftest import ToySweep, toy_in
from tests.tracking.conftest import NewDatabase
from tests.tracking.subjects import all_runs

pytestmark = pytest.mark.xdist_group("ui")
EXPERIMENT = "read"
WHOLE: dict[str, Any] = {
    "parameters": {"algorithm.kl_weight": {"values": [0.1, 0.3, 3.0]}},
    "confirm_seeds": 1,
}
SMALL: dict[str, Any] = {
    "parameters": {"algorithm.kl_weight": {"values": [3.0]}},
    "baselines": ["zero_shot"],
}


def sweep_on(
    uri: str, root: Path | None, folder: Path, changes: dict[str, Any], home: str = "mine"
) -> ToySweep:
    """A home whose sweep is told to an MLflow store: one run of it fails."""
    with pytest.MonkeyPatch.context() as patched:
        toy = toy_in(folder, patched)
        toy.tracker = MlflowStore(uri, EXPERIMENT, root, home=home)  # type: ignore[assignment]
        toy.plan({"3/1": [{"do": "raise", "error": "nan"}]})
        toy.run(**changes)
    return toy


@pytest.fixture(scope="module")
def told(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ToySweep, str]:
    """A sweep in its home, and the database that was told of it."""
    folder = tmp_path_factory.mktemp("told")
    shutil.copy(migrated, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return sweep_on(uri, folder / "mlartifacts", folder, WHOLE), uri


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Any:
    """What `compare` prints."""

    def run(*words: str, expect: int = 0) -> str:
        capsys.readouterr()
        assert main(["compare", *words]) == expect
        seen = capsys.readouterr()
        return seen.out if expect == 0 else seen.err

    return run


def from_server(uri: str) -> tuple[str, ...]:
    return ("--tracking-uri", uri, "--experiment", EXPERIMENT)


@pytest.mark.parametrize("form", ["--json", "--csv", "--latex", "--markdown"])
def test_the_comparison_from_a_database_is_the_one_from_the_home(
    told: tuple[ToySweep, str], compare: Any, form: str
) -> None:
    toy, uri = told
    here = compare("--home", str(toy.home.path), "toy", form)
    assert compare("toy", form, *from_server(uri)) == here
    assert "3" in here


def test_through_a_server_it_is_the_same_too(server: Server, compare: Any, tmp_path: Path) -> None:
    toy = sweep_on(server.address, None, tmp_path, SMALL, home=uuid.uuid4().hex)
    place = f"toy@{toy.tracker._home}"  # type: ignore[attr-defined]
    here = json.loads(compare("--home", str(toy.home.path), "toy", "--json"))
    there = json.loads(compare(place, "--json", *from_server(server.address)))
    assert there == {**here, "sweep": place}


def test_without_a_name_the_sweeps_are_listed(told: tuple[ToySweep, str], compare: Any) -> None:
    assert compare(*from_server(told[1])).startswith("toy@mine  done, begun 20")
    (sweep,) = json.loads(compare("--json", *from_server(told[1])))
    assert (sweep["name"], sweep["home"], sweep["state"]) == ("toy", "mine", "done")


@pytest.fixture
def copied(told: tuple[ToySweep, str], tmp_path: Path) -> str:
    """A database of its own, to be spoilt, beside artifacts that are shared and only read."""
    copy = told[0].folder / f"{tmp_path.name}.db"
    shutil.copy(told[0].folder / "mlflow.db", copy)
    return f"sqlite:///{copy}"


def sweep_run(uri: str) -> Run:
    (run,) = (r for r in all_runs(uri, EXPERIMENT) if r.data.tags["carft.kind"] == "sweep")
    return run


def folder_of(run: Run) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def test_a_file_that_is_gone_from_the_store_is_named(copied: str, compare: Any) -> None:
    file = folder_of(sweep_run(copied)) / COMPARISON_INPUT
    aside = file.rename(file.with_suffix(".aside"))
    try:
        said = compare("toy", *from_server(copied), expect=2)
    finally:
        aside.rename(file)
    assert f"toy@mine cannot be compared: it has no comparison_input.json at {file.parent}" in said


def test_a_sweep_that_runs_is_compared_as_of_the_last_end_of_a_run(
    copied: str, compare: Any
) -> None:
    client, run_id = MlflowClient(copied), sweep_run(copied).info.run_id
    before = json.loads(compare("toy", "--json", *from_server(copied)))
    client.set_tag(run_id, "carft.state", "running")
    after = json.loads(compare("toy", "--json", *from_server(copied)))
    said = "toy still runs: compared is what it sent when a run ended last"
    assert said in after["warnings"]
    assert after["rows"] == before["rows"]
    client.set_tag(run_id, "carft.generation", "2")
    said = compare("toy", *from_server(copied), expect=2)
    assert "toy@mine cannot be compared: none of its runs has ended yet" in said


@pytest.mark.parametrize("form", ["{place}", "file://{place}"])
def test_no_file_but_those_beside_the_database_is_read(
    copied: str, tmp_path: Path, form: str
) -> None:
    """The row of a run in somebody else's database says where its files are."""
    private = tmp_path / "private"
    private.mkdir()
    (private / COMPARISON_INPUT).write_text("{}")
    reader = MlflowReader(copied, EXPERIMENT)
    with pytest.raises(TrackingError, match="is not beside the database"):
        reader._text(form.format(place=private), COMPARISON_INPUT)
    link = Path(copied.removeprefix("sqlite:///")).parent / "mlartifacts" / tmp_path.name
    link.symlink_to(private)
    with pytest.raises(TrackingError, match="is not beside the database"):
        reader._text(form.format(place=link), COMPARISON_INPUT)


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:9/x", "mlflow-artifacts://127.0.0.1:9/x", "file:///etc", "s3://a/b"]
)
def test_no_other_host_is_asked_than_the_server(server: Server, place: str) -> None:
    reader = MlflowReader(server.address, "Default")
    with pytest.raises(TrackingError, match="is not kept by the server itself"):
        reader._text(place, COMPARISON_INPUT)


def test_a_file_without_end_is_not_read(
    copied: str, server: Server, compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_reader, "MOST", 300)
    said = compare("toy", *from_server(copied), expect=2)
    assert re.search("toy@mine cannot be compared: has .* bytes; at most 300 are read", said)
    client = MlflowClient(server.address)
    name = uuid.uuid4().hex
    run = client.create_run(client.create_experiment(name))
    client.log_text(run.info.run_id, "x" * 301, COMPARISON_INPUT)
    with pytest.raises(TrackingError, match="at most 300 bytes are read"):
        MlflowReader(server.address, name)._text(run.info.artifact_uri, COMPARISON_INPUT)


@pytest.mark.parametrize("content", [b"7", b"\xff"])
def test_a_file_that_is_none_costs_no_traceback(copied: str, compare: Any, content: bytes) -> None:
    file = folder_of(sweep_run(copied)) / COMPARISON_INPUT
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        assert "toy@mine cannot be compared: " in compare("toy", *from_server(copied), expect=2)
    finally:
        file.write_bytes(before)


class Heard(http.server.BaseHTTPRequestHandler):
    """A server that remembers who asked."""

    credentials: ClassVar[list[str | None]] = []
    status: ClassVar[int] = 401

    def do_GET(self) -> None:
        self.credentials.append(self.headers["Authorization"])
        self.send_response(self.status)
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def other() -> Iterator[str]:
    """The address of a server that is not the lab's."""
    Heard.credentials.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Heard) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize(
    "variables",
    [
        {"MLFLOW_TRACKING_TOKEN": "t0ken"},
        {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "s3cret"},
    ],
)
def test_credentials_go_to_the_server_of_the_environment_alone(
    other: str,
    compare: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.lab.example")
    said = compare("toy", "--tracking-uri", other, expect=2)
    assert Heard.credentials != []
    assert {*Heard.credentials} == {None}
    assert "which are sent to the server in MLFLOW_TRACKING_URI alone" in said
    assert not any(value in said + caplog.text for value in variables.values())
    Heard.credentials.clear()
    compare("toy", "--tracking-uri", other.replace("//", "//me:mine@"), expect=2)
    assert {*Heard.credentials} == {"Basic bWU6bWluZQ=="}, "those of the address itself"
    Heard.credentials.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{other}/some/path")
    compare("toy", "--tracking-uri", other, expect=2)
    assert None not in Heard.credentials


def test_what_is_not_there_is_said_with_what_is(
    told: tuple[ToySweep, str], new_database: NewDatabase, tmp_path: Path, compare: Any
) -> None:
    uri = told[1]
    assert "unknown sweep 'toi'; did you mean 'toy'?" in compare("toi", *from_server(uri), expect=2)
    said = compare("toy", "--tracking-uri", uri, "--experiment", "raed", expect=2)
    assert "unknown experiment 'raed'; did you mean 'read'?" in said
    missing = tmp_path / "no.db"
    with pytest.raises(TrackingError, match=r"no MLflow database .*no\.db"):
        MlflowReader(f"sqlite:///{missing}")
    assert not missing.exists()
    empty = new_database()
    client = MlflowClient(empty)
    client.delete_experiment(client.create_experiment(EXPERIMENT))
    with pytest.raises(TrackingError, match="restore"):
        MlflowReader(empty, EXPERIMENT)


def test_sweeps_with_impossible_tags_and_times_are_listed(copied: str, compare: Any) -> None:
    client, experiment = MlflowClient(copied), MlflowReader(copied, EXPERIMENT)._experiment
    client.create_run(experiment, tags={"carft.kind": "sweep"})
    tags = {"carft.kind": "sweep", "carft.sweep": "odd"}
    client.create_run(experiment, tags=tags, start_time=10**17)
    assert "odd@  unknown, begun unknown UTC by" in compare(*from_server(copied))
    assert "toy@mine" in compare(*from_server(copied))
