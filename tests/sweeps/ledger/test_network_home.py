"""A sweep in a home that is taken for one on NFS: run, interrupted, gone on with, looked at."""

from __future__ import annotations

import importlib
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from carft_sweep.sweeps.ledger.optuna_copy import study_file
from carft_sweep.tracking.store.mlflow_store import open_store
from tests.mounts import mount
from tests.sweeps import toy_core
from tests.sweeps.conftest import Carft, ToySweep
from tests.sweeps.scheduler.dying import dying


@pytest.fixture
def shared(toy_cli: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToySweep:
    """The commands in a home on NFS, and a tracking server that the environment names."""
    mount(monkeypatch, tmp_path, "nfs4")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    return toy_cli


@pytest.mark.parametrize("victim", ["complete", "add_trial"])
def test_a_driver_that_dies_in_a_write_loses_nothing(shared: ToySweep, victim: str) -> None:
    with dying(victim):
        shared.command()
    for written in (shared.ledger().file, study_file(shared.home)):
        with written.open("ab") as file:
            file.write(b'{"op_code":4,"wor')
    assert shared.command() == 0
    assert [trial.state.name for trial in shared.study().trials] == ["COMPLETE", "COMPLETE"]
    assert set(shared.trained().values()) == {toy_core.EPOCHS + 1}
    assert [file.name for file in shared.home.path.glob("optuna.*")] == ["optuna.journal"]
    assert not list(shared.home.path.rglob("*.db"))


def test_optunas_programs_open_the_journal_and_no_command_makes_mlflows_database(
    shared: ToySweep, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    shared.command()
    file = str(study_file(shared.home))
    dashboard = importlib.import_module("optuna_dashboard._storage_url")
    for storage in (JournalStorage(JournalFileBackend(file)), dashboard.get_storage(file)):
        study = optuna.load_study(study_name="toy", storage=storage)
        assert [trial.value for trial in study.trials] == pytest.approx([0.785, 0.805])
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr("carft_sweep.sweeps.cli.sync.open_store", open_store)
    for command in ("ui", "sync"):
        assert "name a server in MLFLOW_TRACKING_URI" in carft(command, code=2).err
    assert not list(shared.home.path.rglob("mlflow.db*"))
