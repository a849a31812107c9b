"""A home whose databases are gone, or that was copied or moved, records its runs anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.optuna_copy import open_storage
from carft_sweep.tracking.store.mlflow_store import open_store
from tests.sweeps.conftest import ONE_RUN, Carft, ToySweep, toy_in
from tests.sweeps.results.test_sync import PRUNING

SERVICES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "CARFT_OPTUNA_STORAGE")
APART = ("carft.home", "mlflow.parentRunId", "mlflow.log-model.history")
"""Tags of MLflow's own ids."""


@pytest.fixture(autouse=True)
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVICES:
        monkeypatch.delenv(name, raising=False)


def run_in(toy: ToySweep, home: Home, **changes: Any) -> None:
    before = toy.folder
    toy.folder = home.path.parent
    store = toy.tracker = open_store(home.path)  # type: ignore[assignment]
    try:
        toy.run(**changes)
        assert toy.complaints == []
    finally:
        store.close()
        toy.folder = before


def client_of(home: Home) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home.path / 'mlflow.db'}")


def runs_in(home: Home, kind: str = "%") -> list[Run]:
    client = client_of(home)
    (experiment,) = (e for e in client.search_experiments() if e.name == "carft-sweep")
    query = f"tags.`carft.kind` LIKE '{kind}'"
    return [*client.search_runs([experiment.experiment_id], query)]


def recorded(home: Home) -> dict[str, tuple[Any, ...]]:
    """What MLflow has of each run, by its name, without MLflow's own ids."""
    client = client_of(home)
    return {
        f"{run.data.tags['carft.kind']} {run.info.run_name}": tuple(_facts(client, home, run))
        for run in runs_in(home)
    }


def _facts(client: MlflowClient, home: Home, run: Run) -> Iterator[Any]:
    yield run.info.status
    # What is computed of the runs is as of the last end of their sweep, and bears its time.
    is_run = run.data.tags["carft.kind"] == "run"
    yield (run.info.start_time, run.info.end_time) if is_run else None
    yield run.data.params
    tags = {name: value for name, value in run.data.tags.items() if name not in APART}
    tags["mlflow.note.content"] = tags.get("mlflow.note.content", "").partition("](#")[2][-30:]
    yield tags
    for name in sorted(run.data.metrics):
        points = client.get_metric_history(run.info.run_id, name) if is_run else []
        yield name, str(run.data.metrics[name])  # NaN is not equal to itself
        yield name, sorted((point.step, point.timestamp, point.value) for point in points)
    folder = Path(str(run.info.artifact_uri))
    assert folder.is_relative_to(home.path / "mlartifacts")
    yield {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def studied(home: Home) -> list[tuple[Any, ...]]:
    """The trials of every study, to the second."""
    storage = open_storage(home)
    fields = attrgetter(
        *("number", "state", "params", "distributions", "values"),
        *("intermediate_values", "user_attrs", "datetime_start"),
    )
    return [
        (name, *fields(trial))
        for name in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).trials
    ]


def prints(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """When each file was written, and what it holds."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToySweep]:
    """A home of which MLflow and Optuna have everything; each test damages that and mends it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SERVICES:
            patch.delenv(name, raising=False)
        toy = toy_in(tmp_path_factory.mktemp("whole"), patch)
        run_in(toy, toy.home, **PRUNING)
        yield toy


def had(toy: ToySweep) -> tuple[Any, ...]:
    comparison = (toy.home.sweep("toy") / "comparison.json").read_bytes()
    return recorded(toy.home), studied(toy.home), comparison, toy.trained()


@pytest.fixture(scope="module")
def before(whole: ToySweep) -> tuple[Any, ...]:
    """All that the home has and has sent, as it was before any damage."""
    return had(whole)


def test_a_copy_writes_nothing_into_its_original_and_has_all_its_runs(
    whole: ToySweep, before: tuple[Any, ...], tmp_path: Path, carft: Carft
) -> None:
    files, (runs, *_) = prints(whole.home.path), before
    copy = Home(tmp_path / "elsewhere" / "home")
    shutil.copytree(whole.home.path, copy.path)
    assert "are not recorded as here" in carft("doctor", "sent", "--home", copy.path).out
    assert f"carft-sweep sync --home {copy.path}" in carft("ui", "--home", copy.path, code=2).err
    values = [*PRUNING["parameters"]["algorithm.kl_weight"]["values"], 9.0]
    parameters = {"algorithm.kl_weight": {"values": values}}
    run_in(whole, copy, **{**PRUNING, "parameters": parameters})
    assert prints(whole.home.path) == files
    copied = recorded(copy)
    assert runs.keys() < copied.keys()
    assert any("kl_weight=9" in name for name in copied)
    assert (copy.path / "before-move-1" / "mlflow.db").exists()
    assert "All is well" in carft("doctor", "sent", "--home", copy.path).out


def test_a_sweep_of_an_experiment_of_its_own_is_sent_looked_up_and_removed_there(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    for module in ("api", "cli.sync", "cli.removal"):
        monkeypatch.setattr(f"carft_sweep.sweeps.{module}.open_store", open_store)
    served = SimpleNamespace(address="http://here", process=None)
    monkeypatch.setattr("carft_sweep.sweeps.cli.ui.serve", lambda *_, **__: served)
    file = toy_cli.file(experiment="paper", notes="Why we ask.", **ONE_RUN)
    carft("run", file, "--quiet")
    assert "has every run as it is here" in carft("sync").out
    assert "every run is recorded" in carft("doctor", "sent").out
    client = MlflowClient(f"sqlite:///{toy_cli.home.path / 'mlflow.db'}")
    paper, _default = client.search_experiments()
    assert paper.name == "paper"
    runs = client.search_runs([paper.experiment_id])
    assert {"sweep", "run", "arm"} == {run.data.tags["carft.kind"] for run in runs}
    (own,) = (run for run in runs if run.data.tags["carft.kind"] == "sweep")
    assert own.data.tags["mlflow.note.content"].endswith("\n\nWhy we ask.")
    assert len({run.data.tags["mlflow.user"] for run in runs}) == 1
    assert f"#/experiments/{paper.experiment_id}/runs/" in carft("ui").out
    carft("remove", "toy", "--yes")
    assert client.search_runs([paper.experiment_id]) == []


def delete_runs(home: Home, kind: str, count: int | None = 1) -> None:
    for run in runs_in(home, kind)[:count]:
        client_of(home).delete_run(run.info.run_id)


def reopen(home: Home, kind: str) -> None:
    client_of(home).update_run(runs_in(home, kind)[0].info.run_id, status="RUNNING")


def delete_input(home: Home) -> None:
    (sweep,) = runs_in(home, "sweep")
    Path(sweep.info.artifact_uri.removeprefix("file://"), "comparison_input.json").unlink()


def overwrite(home: Home, pattern: str, content: bytes) -> None:
    for file in home.sweep("toy").glob(pattern):
        file.write_bytes(content)


def delete_study(home: Home) -> None:
    optuna.delete_study(study_name="toy", storage=open_storage(home))


def cut(database: Path) -> None:
    """Cut a database in the middle, and close it: a process keeps one open that it has opened."""
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])
    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()


STUDIED = "toy: 3 trials written to its Optuna study."
DAMAGES: dict[str, tuple[Callable[[Home], object], str]] = {
    "nothing": (lambda _: None, "has every run as it is here."),
    "a run": (lambda home: delete_runs(home, "run"), "toy: 2 runs sent."),
    "the sweep's run": (lambda home: delete_runs(home, "sweep"), "runs sent."),
    "all arms": (lambda home: delete_runs(home, "arm", None), "toy: 1 run sent."),
    "a run's end": (lambda home: reopen(home, "run"), "toy: 2 runs sent."),
    "an arm's state": (lambda home: reopen(home, "arm"), "toy: 1 run sent."),
    "what is compared": (delete_input, "runs sent."),
    "all files": (lambda home: shutil.rmtree(home.path / "mlartifacts"), "runs sent."),
    "a damaged comparison": (
        lambda home: overwrite(home, "comparison.json", b'{"verdict": '),
        "toy: comparison.json was written anew",
    ),
    "a damaged log": (
        lambda home: overwrite(home, "sent/*.jsonl", b"\xff{\n[]\n{}\n"),
        "runs sent.",
    ),
    "a cut MLflow database": (lambda home: cut(home.path / "mlflow.db"), "toy: 6 runs sent."),
    "the study": (delete_study, STUDIED),
    "a cut Optuna database": (lambda home: cut(home.path / "optuna.db"), STUDIED),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_sync_mends_every_projection_and_says_so(
    whole: ToySweep, before: tuple[Any, ...], damage: str, carft: Carft
) -> None:
    work, message = DAMAGES[damage]
    work(whole.home)
    home = ("--home", whole.home.path)
    report = carft("doctor", "sent", *home, code=2 * damage.startswith("a cut")).out
    # At the comparison it does not look.
    assert ("All is well" in report) == (damage in ("nothing", "a damaged comparison")), report
    assert message in carft("sync", *home).out
    assert had(whole) == before
    assert carft("doctor", "sent", *home).out.endswith("All is well.\n")
    assert (whole.home.path / "mlflow.db.damaged").exists() or "MLflow database" not in damage


def test_two_homes_that_share_a_database_leave_each_others_runs_alone(
    toy: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared" / "mlflow.db"
    shared.parent.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared}")
    for name in ("one", "two", "one"):
        home = Home(tmp_path / name / "home")
        home.path.mkdir(parents=True, exist_ok=True)
        run_in(toy, home, **ONE_RUN)
    assert [*shared.parent.glob("before-move-*")] == []
    client = MlflowClient(f"sqlite:///{shared}")
    runs = client.search_runs([client.get_experiment_by_name("carft-sweep").experiment_id])  # type: ignore[union-attr]
    assert len({run.data.tags["carft.home"] for run in runs}) == 2


def test_a_home_that_was_moved_does_not_make_its_old_path_again(
    whole: ToySweep, before: tuple[Any, ...], tmp_path: Path, carft: Carft
) -> None:
    """The last test here: the home is gone."""
    runs, trials, *_ = before
    moved = Home(tmp_path / "elsewhere" / "home")
    moved.path.parent.mkdir()
    whole.home.path.rename(moved.path)
    carft("sync", "--home", moved.path)
    assert not whole.home.path.exists()
    assert studied(moved) == trials
    rebuilt = recorded(moved)
    for name, facts in runs.items():
        if name != "sweep toy":
            assert rebuilt[name] == facts, name
