"""A comparison from an MLflow server is the one from the home, and says what it could not read."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.loading import load_comparison
from carft_sweep.sweeps.results.records import comparison, load_part
from carft_sweep.sweeps.results.report import publish
from carft_sweep.tracking import mlflow_reader
from carft_sweep.tracking.comparison.input_file import COMPARISON_INPUT
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.mlflow_reader import MlflowReader
from carft_sweep.tracking.report.formats import to_json
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from carft_sweep.tracking.ui_server import Server
from tests.services.answering import Answer, Asked, answering
from tests.sweeps.conftest import ToySweep, toy_in
from tests.tracking.conftest import NewDatabase
from tests.tracking.subjects import all_runs

pytestmark = pytest.mark.xdist_group("ui")
EXPERIMENT = "read"
KL = "algorithm.kl_weight"
WHOLE: dict[str, Any] = {"parameters": {KL: {"values": [0.1, 0.3, 3.0]}}, "confirm_seeds": 1}
SMALL: dict[str, Any] = {"parameters": {KL: {"values": [3.0]}}, "baselines": ["zero_shot"]}


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
def swept(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ToySweep, str]:
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
    swept: tuple[ToySweep, str], compare: Any, form: str
) -> None:
    toy, uri = swept
    of_home = compare("--home", str(toy.home.path), "toy", form)
    assert compare("toy", form, *from_server(uri)) == of_home
    assert "3" in of_home


def test_through_a_server_it_is_the_same_too(server: Server, compare: Any, tmp_path: Path) -> None:
    toy = sweep_on(server.address, None, tmp_path, SMALL, home=uuid.uuid4().hex)
    place = f"toy@{toy.tracker._home}"  # type: ignore[attr-defined]
    of_home = json.loads(compare("--home", str(toy.home.path), "toy", "--json"))
    served = json.loads(compare(place, "--json", *from_server(server.address)))
    assert served == {**of_home, "sweep": place}


def test_loaded_from_python_it_is_the_same_of_a_home_a_server_and_a_published_folder(
    swept: tuple[ToySweep, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, uri = swept
    ledger, runs = find_ledger(toy.home, "toy"), RunStore(toy.home.runs)
    of_home = comparison(ledger, runs)
    served = load_comparison("toy", tracking_uri=uri, experiment=EXPERIMENT)
    assert to_json(served) == to_json(of_home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # which none of these needs
    assert to_json(load_comparison("toy", home=toy.home.path)) == to_json(of_home)
    publish(tmp_path / "toy", ledger, load_part(ledger, runs, with_fields=True))
    loaded = load_comparison(tmp_path / "toy")
    assert loaded.verdict == of_home.verdict
    assert [row.arm.label for row in loaded.rows] == [row.arm.label for row in of_home.rows]
    # One condition may stand alone, and a rule goes before the sweep's own.
    alone = load_comparison("toy", home=toy.home.path, conditions="kl_weight>=0.3")
    assert alone == load_comparison("toy", home=toy.home.path, conditions=["kl_weight>=0.3"])
    spec = ComparisonSpec(rule=SelectionRule(metric="id/val/nll", goal="minimize"))
    assert load_comparison("toy", home=toy.home.path, spec=spec).rule.metric == "id/val/nll"


@pytest.fixture
def copied(swept: tuple[ToySweep, str], tmp_path: Path) -> str:
    """A database of its own, to be spoilt, beside artifacts that are shared and only read."""
    copy = swept[0].folder / f"{tmp_path.name}.db"
    shutil.copy(swept[0].folder / "mlflow.db", copy)
    return f"sqlite:///{copy}"


def sweep_run(uri: str) -> Run:
    (run,) = (r for r in all_runs(uri, EXPERIMENT) if r.data.tags["carft.kind"] == "sweep")
    return run


@contextmanager
def replaced(uri: str, content: bytes | None) -> Iterator[Path]:
    """The file that is compared is another one meanwhile, or gone."""
    file = Path(sweep_run(uri).info.artifact_uri.removeprefix("file://")) / COMPARISON_INPUT
    before = file.read_bytes()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    try:
        yield file
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("content", [None, b"7", b"\xff"])
def test_a_file_that_is_gone_or_none_of_ours_costs_no_traceback(
    copied: str, compare: Any, content: bytes | None
) -> None:
    with replaced(copied, content) as file:
        printed = compare("toy", *from_server(copied), expect=2)
    assert "toy@mine cannot be compared: " in printed
    if content is None:
        assert f"compared: it has no comparison_input.json at {file.parent}" in printed


def test_a_sweep_that_runs_is_compared_as_a_run_last_ended(copied: str, compare: Any) -> None:
    client, run_id = MlflowClient(copied), sweep_run(copied).info.run_id
    before = json.loads(compare("toy", "--json", *from_server(copied)))
    client.set_tag(run_id, "carft.state", "running")
    after = json.loads(compare("toy", "--json", *from_server(copied)))
    assert "toy still runs: compared is what it sent when a run ended last" in after["warnings"]
    assert after["rows"] == before["rows"]
    client.set_tag(run_id, "carft.generation", "2")
    printed = compare("toy", *from_server(copied), expect=2)
    assert "toy@mine cannot be compared: none of its runs has ended yet" in printed


def test_no_file_but_those_beside_the_database_is_read_and_no_host_but_the_server_is_asked(
    copied: str, tmp_path: Path, server: Server
) -> None:
    """The row of a run in somebody else's database says where its files are."""
    private = tmp_path / "private"
    private.mkdir()
    (private / COMPARISON_INPUT).write_text("{}")
    link = Path(copied.removeprefix("sqlite:///")).parent / "mlartifacts" / tmp_path.name
    link.symlink_to(private)
    reader = MlflowReader(copied, EXPERIMENT)
    for place in (private, link):
        for uri in (f"{place}", f"file://{place}"):
            with pytest.raises(TrackingError, match="is not beside the database"):
                reader._text(uri, COMPARISON_INPUT)
    served = MlflowReader(server.address, "Default")
    hosts = ("http://127.0.0.1:9/x", "mlflow-artifacts://127.0.0.1:9/x")
    for address in (*hosts, "file:///etc", "s3://a/b"):
        with pytest.raises(TrackingError, match="is not kept by the server itself"):
            served._text(address, COMPARISON_INPUT)


def test_a_file_without_end_is_not_read(
    copied: str, server: Server, compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_reader, "MOST", 300)
    printed = compare("toy", *from_server(copied), expect=2)
    assert re.search("toy@mine cannot be compared: has .* bytes; at most 300 are read", printed)
    client = MlflowClient(server.address)
    name = uuid.uuid4().hex
    run = client.create_run(client.create_experiment(name))
    client.log_text(run.info.run_id, "x" * 301, COMPARISON_INPUT)
    with pytest.raises(TrackingError, match="at most 300 bytes are read"):
        MlflowReader(server.address, name)._text(run.info.artifact_uri, COMPARISON_INPUT)


@pytest.mark.parametrize(
    "secrets",
    [{"TOKEN": "t0ken"}, {"USERNAME": "ada", "PASSWORD": "s3cret"}],
    ids=["token", "user"],
)
def test_credentials_go_to_the_server_of_the_environment_alone(
    compare: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    secrets: dict[str, str],
) -> None:
    sent: list[str | None] = []

    def heard(asked: Asked) -> Answer:
        sent.append(asked.headers.get("Authorization"))
        return Answer(code=401)

    def credentials(lab: str, uri: str) -> tuple[set[str | None], str]:
        sent.clear()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", lab)
        printed = compare("toy", "--tracking-uri", uri, expect=2)
        return {*sent}, printed

    for name, value in secrets.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    with answering(heard) as other:
        lab = "https://mlflow.lab.example"
        headers, printed = credentials(lab, other)
        assert headers == {None}
        assert "which are sent to the server in MLFLOW_TRACKING_URI alone" in printed
        assert not any(value in printed + caplog.text for value in secrets.values())
        of_address = {"Basic bWU6bWluZQ=="}
        assert credentials(lab, other.replace("//", "//me:mine@"))[0] == of_address
        headers, _ = credentials(f"{other}/some/path", other)
        assert headers - {None} == headers != set()


def test_what_is_not_there_is_said_with_what_is(
    swept: tuple[ToySweep, str], new_database: NewDatabase, tmp_path: Path, compare: Any
) -> None:
    toy, uri = swept
    assert "unknown sweep 'toi'; did you mean 'toy'?" in compare("toi", *from_server(uri), expect=2)
    printed = compare("toy", "--tracking-uri", uri, "--experiment", "raed", expect=2)
    assert "unknown experiment 'raed'; did you mean 'read'?" in printed
    empty = new_database()
    client = MlflowClient(empty)
    client.delete_experiment(client.create_experiment(EXPERIMENT))
    load, missing = load_comparison, f"sqlite:///{tmp_path / 'no.db'}"
    served: dict[str, Any] = {"tracking_uri": uri, "experiment": EXPERIMENT}
    asked: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: load("toi", **served), TrackingError, r"'toi'; did you mean 'toy'"),
        (lambda: load("toi", home=toy.home.path), RequestError, r"'toi' in .*; did you mean 'toy'"),
        (lambda: load("toy", home=tmp_path), RequestError, "no sweep"),
        (load_comparison, TypeError, "name of a sweep"),
        (lambda: MlflowReader(missing), TrackingError, r"no MLflow database .*no\.db"),
        (lambda: MlflowReader(empty, EXPERIMENT), TrackingError, "restore"),
    ]
    for ask, kind, message in asked:
        with pytest.raises(kind, match=message):
            ask()
    assert [file.suffix for file in tmp_path.iterdir() if file.name != Path(empty).name] == []


def test_without_a_name_sweeps_are_listed_with_impossible_tags_and_times_too(
    copied: str, compare: Any
) -> None:
    assert compare(*from_server(copied)).startswith("toy@mine  done, begun 20")
    (sweep,) = json.loads(compare("--json", *from_server(copied)))
    assert (sweep["name"], sweep["home"], sweep["state"]) == ("toy", "mine", "done")
    client, experiment = MlflowClient(copied), MlflowReader(copied, EXPERIMENT)._experiment
    client.create_run(experiment, tags={"carft.kind": "sweep"})
    tags = {"carft.kind": "sweep", "carft.sweep": "odd"}
    client.create_run(experiment, tags=tags, start_time=10**17)
    listed = compare(*from_server(copied))
    assert "odd@  unknown, begun unknown UTC by" in listed
    assert "toy@mine" in listed
