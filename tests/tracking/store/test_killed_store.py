"""A process that is killed while it writes MLflow's database leaves one that still opens."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tracking.store.mlflow_client import check_reachable
from tracking.store.mlflow_store import MlflowStore

WRITER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")  # so that the transaction reaches the file
connection.execute("BEGIN IMMEDIATE")
for number in range(2000):
    connection.execute("INSERT INTO things VALUES (?)", ("x" * 500,))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_transaction_that_was_cut_off_is_rolled_back_and_the_database_answers(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE things (value TEXT)")
    connection.close()
    done = subprocess.run([sys.executable, "-c", WRITER, str(file)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert file.with_name("mlflow.db-journal").stat().st_size > 0
    check_reachable(f"sqlite:///{file}")
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (0,)
    connection.close()


class Killed(BaseException):
    """The process ends here."""


def test_a_database_is_there_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MlflowClient.search_experiments

    def cut_off(*_: object, **__: object) -> None:
        raise Killed

    store = MlflowStore(f"sqlite:///{tmp_path / 'mlflow.db'}", "x", tmp_path / "artifacts")
    monkeypatch.setattr(MlflowClient, "search_experiments", cut_off)
    with pytest.raises(Killed):
        store.check()
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / ".mlflow.db.new-1").mkdir()
    monkeypatch.setattr(MlflowClient, "search_experiments", real)
    store.check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
