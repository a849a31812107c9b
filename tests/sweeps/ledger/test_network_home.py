"""A sweep in a home that is taken for one on NFS: run, interrupted, gone on with, looked at."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.study import study_file
from carft_sweep.sweeps.ledger.trials import find_ledger
from carft_sweep.tracking.store.mlflow_store import open_store
from tests.mounts import mount
from tests.sweeps import toy_core
from tests.sweeps.conftest import SEARCH, ToySweep
from tests.sweeps.scheduler.dying import dying


@pytest.fixture
def shared(toy_cli: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToySweep:
    """The commands in a home on NFS, and a tracking server that the environment names."""
    mount(monkeypatch, tmp_path, "nfs4")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    return toy_cli


def run(toy: ToySweep, **changes: Any) -> int:
    return main(["run", str(toy.file(**changes)), "--in-process"])


def told(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main([*command]) == 0
    return capsys.readouterr().out


def interrupted_run(config: Any, seed: int, *, report: Any, **places: Any) -> Any:
    """An entry: the toy core, and Ctrl-C in the first epoch of one run."""

    def told(epoch: Any) -> Any:
        if (config["algorithm"].get("kl_weight"), seed, epoch["epoch"]) == (0.3, 0, 1):
            os.kill(os.getpid(), signal.SIGINT)
        return report(epoch)

    return toy_core.train_run(config, seed, report=told, **places)


def trials(toy: ToySweep) -> Mapping[int, tuple[str, float | None]]:
    return {trial.number: (trial.state, trial.value) for trial in toy.ledger().trials()}


def test_an_interrupted_sweep_goes_on_to_the_same_end(
    shared: ToySweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        engine = InProcessEngine(f"{__name__}:interrupted_run")
        patched.setattr("carft_sweep.sweeps.api.make_engine", lambda *_, **__: engine)
        assert run(shared) == 3
    assert trials(shared)[1] == ("running", None)
    assert "Interrupted. To go on: carft-sweep resume toy" in capsys.readouterr().err
    assert main(["resume", "toy", "--in-process"]) == 0
    assert trials(shared) == {
        0: ("complete", pytest.approx(0.785)),
        1: ("complete", pytest.approx(0.805)),
    }
    assert set(shared.trained().values()) == {toy_core.EPOCHS + 1}, "no epoch twice"
    assert [file.name for file in shared.home.path.glob("optuna.*")] == ["optuna.journal"]
    assert not list(shared.home.path.rglob("*.db"))


@pytest.mark.parametrize("victim", ["complete", "propose"])
@pytest.mark.parametrize("torn", [b"", b'{"op_code":4,"wor'])
def test_a_driver_that_dies_behind_a_write_loses_and_doubles_nothing(
    shared: ToySweep, victim: str, torn: bytes
) -> None:
    with dying(victim):
        run(shared)
    for written in (shared.ledger().file, study_file(shared.home)):
        with written.open("ab") as file:
            file.write(torn)
    assert run(shared) == 0
    states = [trial.state.name for trial in shared.study().trials]
    assert states == ["COMPLETE", "COMPLETE"]
    assert set(shared.trained().values()) == {toy_core.EPOCHS + 1}


def test_a_search_proposes_there_what_it_proposes_on_a_local_disk(
    toy_cli: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    found = {}
    for kind in ("nfs4", "ext4"):
        mount(monkeypatch, tmp_path, kind)
        assert main(["--home", str(tmp_path / kind), "run", str(toy_cli.file(**SEARCH))]) == 0
        ledger = find_ledger(Home(tmp_path / kind), "toy")
        found[kind] = [(trial.params, trial.value) for trial in ledger.trials()]
    assert len(found["nfs4"]) == SEARCH["run_cap"]
    assert found["nfs4"] == found["ext4"]
    names = [file.name for file in sorted(tmp_path.glob("*/optuna.[dj]*"))]
    assert names == ["optuna.db", "optuna.journal"]


def test_it_is_shown_without_a_server_too(
    shared: ToySweep,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(shared)
    capsys.readouterr()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "toy" in told(capsys, "list")
    assert "2 trials: 2 complete" in told(capsys, "show", "toy")
    assert len(json.loads(told(capsys, "compare", "toy", "--json"))["rows"]) > 2
    assert "a run that no sweep uses" not in told(capsys, "clean")


def test_without_a_server_nothing_starts(
    shared: ToySweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert run(shared) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"carft-sweep: MLflow's database {shared.home.path}/mlflow.db")
    assert "name a server in MLFLOW_TRACKING_URI, or a home on a local disk" in said
    assert not shared.home.path.exists()


@pytest.mark.parametrize("command", ["ui", "sync"])
def test_no_command_makes_mlflows_database_there(
    shared: ToySweep,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    run(shared)
    capsys.readouterr()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr("carft_sweep.sweeps.cli.sync.open_store", open_store)
    assert main([command]) == 2
    assert "name a server in MLFLOW_TRACKING_URI" in capsys.readouterr().err
    assert not list(shared.home.path.rglob("mlflow.db*"))


def test_optuna_and_its_dashboard_open_the_journal_as_the_docs_say(shared: ToySweep) -> None:
    run(shared)
    file = str(study_file(shared.home))
    dashboard = importlib.import_module("optuna_dashboard._storage_url")
    for opened in (JournalStorage(JournalFileBackend(file)), dashboard.get_storage(file)):
        study = optuna.load_study(study_name="toy", storage=opened)
        assert [trial.value for trial in study.trials] == pytest.approx([0.785, 0.805])
