"""`doctor`: a line for each thing, what to do below it, and how it exits."""

from __future__ import annotations

from pathlib import Path

import pytest

from carft_sweep.sweeps.doctor.checks import CHECKS, SUBJECTS
from tests.sweeps.conftest import Carft

VARIABLES = ("MLFLOW_TRACKING_URI", "CARFT_OPTUNA_STORAGE", "RAY_ADDRESS")


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is not there yet, and nothing named."""
    monkeypatch.setenv("CARFT_HOME", str(tmp_path / "home"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_on_a_fresh_machine_nothing_is_wrong_or_made(tmp_path: Path, carft: Carft) -> None:
    lines = carft("doctor").out.splitlines()
    heads = [line for line in lines[:-1] if not line.startswith(" ")]
    assert heads == [name for name in SUBJECTS.values() if name in heads]
    assert {"Versions", "This machine", "GPU", "Home", "Runs (MLflow)"} <= {*heads}
    assert not (tmp_path / "home").exists()


def test_what_is_not_well_is_counted_and_has_a_line_of_what_to_do(
    tmp_path: Path, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").touch()
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    lines = carft("doctor", "home.folder", "machine.cores", code=2).out.splitlines()
    at = lines.index("Home")
    assert lines[at + 1] == f"  wrong        {tmp_path / 'home'} is no folder"
    assert lines[at + 2].startswith("               -> name another folder with --home")
    assert lines[-1] == "1 thing is wrong, 1 warning."


def test_a_service_that_is_away_is_4_and_the_rest_of_its_subject_is_not_asked(
    carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    checks = carft("doctor", "--json", "mlflow", "home.folder", code=4).json["checks"]
    assert [(check["check"], check["level"], bool(check["advice"])) for check in checks] == [
        ("home.folder", "ok", False),
        ("mlflow.place", "unreachable", True),
    ]
    assert "unknown check 'mlfow'; did you mean 'mlflow'?" in carft("doctor", "mlfow", code=2).err


def test_the_page_has_a_row_for_every_check() -> None:
    from docs.hooks.registry import TABLES

    rows = TABLES["doctor"]().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [check.name for check in CHECKS]
