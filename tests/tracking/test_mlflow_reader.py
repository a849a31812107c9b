"""A comparison from an MLflow server is the one from the home, and says what it could not read."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from carft_sweep.sweeps.cli import main
from carft_sweep.tracking.comparison import runs as kept_results
from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.mlflow_reader import MlflowReader
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from carft_sweep.tracking.ui_server import Server
from tests.sweeps.conftest import ToySweep, toy_in
from tests.tracking.conftest import NewDatabase
from tests.tracking.subjects import all_runs

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


def test_it_counts_what_failed(told: tuple[ToySweep, str], compare: Any) -> None:
    rows = json.loads(compare("toy", "--json", *from_server(told[1])))["rows"]
    by_label = {row["label"]: row for row in rows}
    assert by_label["car_ft kl_weight=3"]["runs"] == {"done": 1, "failed": 1}
    assert by_label["zero_shot"]["n"] == 1


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
    """A database of its own, to be spoilt; the artifacts are shared and only read."""
    shutil.copy(told[0].folder / "mlflow.db", tmp_path / "copy.db")
    return f"sqlite:///{tmp_path / 'copy.db'}"


def test_two_homes_with_a_sweep_of_one_name_are_listed_and_told_apart(
    copied: str, compare: Any
) -> None:
    parent = next(r for r in all_runs(copied, EXPERIMENT) if r.data.tags["carft.kind"] == "sweep")
    tags = {**parent.data.tags, "carft.home": "yours"}
    MlflowClient(copied).create_run(parent.info.experiment_id, tags=tags)
    said = compare("toy", *from_server(copied), expect=2)
    assert "2 homes have a sweep 'toy'; say which:\n  toy@mine  done, begun" in said
    assert "toy@yours" in said
    found = json.loads(compare("toy@mine", "--json", *from_server(copied)))
    assert (found["sweep"], len(found["rows"])) == ("toy@mine", 13)
    assert "no home 'theirs' has a sweep 'toy'" in compare(
        "toy@theirs", *from_server(copied), expect=2
    )


def untag(uri: str, tag: str) -> None:
    client = MlflowClient(uri)
    for run in all_runs(uri, EXPERIMENT):
        if tag in run.data.tags:
            client.delete_tag(run.info.run_id, tag)


def test_finished_runs_without_a_result_are_named_and_left_out(copied: str, compare: Any) -> None:
    untag(copied, kept_results.HAS_RESULT)
    found = json.loads(compare("toy", "--json", *from_server(copied)))
    assert {row["n"] for row in found["rows"]} <= {0}
    assert "10 finished runs have no result.json on the server and are left" in found["warnings"][0]


def test_a_tag_on_the_server_decides_nowhere_what_is_written(
    copied: str, compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may make a run on a server of a team sets its tags."""
    scratch, victim = tmp_path / "scratch", tmp_path / "victim"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    client = MlflowClient(copied)
    done = [r for r in all_runs(copied, EXPERIMENT) if kept_results.HAS_RESULT in r.data.tags]
    for run, digest in zip(done, [str(victim), "../../victim", "../victim"], strict=False):
        client.set_tag(run.info.run_id, "carft.run", digest)
    before = {*tmp_path.iterdir()}
    compare("toy", *from_server(copied))
    assert {*tmp_path.iterdir()} == before
    assert [*scratch.iterdir()] == []


def test_a_file_that_is_gone_from_the_store_counts_as_none(copied: str, tmp_path: Path) -> None:
    reader = MlflowReader(copied, EXPERIMENT)
    (sweep,) = reader.sweeps()
    tag = kept_results.HAS_RESULT
    run = next(run for run in all_runs(copied, EXPERIMENT) if tag in run.data.tags)
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert reader._text(str(folder), kept_results.RESULT, tmp_path / "a") is not None
    assert reader._text(str(folder), "gone.json", tmp_path / "b") is None
    assert len(reader.part(sweep).records) == 11


def test_a_file_that_is_gone_from_a_server_counts_as_none(server: Server, tmp_path: Path) -> None:
    client = MlflowClient(server.address)
    name = uuid.uuid4().hex
    run = client.create_run(client.create_experiment(name))
    reader = MlflowReader(server.address, name)
    assert reader._text(run.info.artifact_uri, kept_results.RESULT, tmp_path) is None


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


def test_a_server_that_is_away_exits_with_4(compare: Any) -> None:
    said = compare("toy", "--tracking-uri", "http://me:secret@127.0.0.1:9", expect=4)
    assert "127.0.0.1:9" in said
    assert "secret" not in said
    with pytest.raises(ServiceUnreachable):
        MlflowReader("http://127.0.0.1:9")
