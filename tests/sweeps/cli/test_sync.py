"""Delivering what a tracking server missed, once it answers again."""

from __future__ import annotations

import re

import pytest

from sweeps.cli import main
from sweeps.ledger.claim import Claim
from tests.sweeps.conftest import ToySweep
from tracking.errors import ServiceUnreachable, TrackingError
from tracking.store.base import RunStart
from tracking.store.memory_store import MemoryTracker


class Away(MemoryTracker):
    """A server that does not answer."""

    def open(self, start: RunStart) -> None:
        del start
        raise ServiceUnreachable("connection refused")


class Picky(MemoryTracker):
    """A server that refuses every tag."""

    def tags(self, *_: object) -> None:
        raise TrackingError("no tags here")


@pytest.fixture
def missed(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> ToySweep:
    """A sweep that has ended, and of which its server knows nothing."""
    monkeypatch.setattr("sweeps.api.PATIENCE", 0.2)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    toy_cli.tracker = Away()
    assert main(["run", str(toy_cli.file()), "--in-process", "--quiet"]) == 0
    assert "`carft-sweep sync` or the next run delivers them" in capsys.readouterr().err
    return toy_cli


def test_everything_is_delivered_and_counted(
    missed: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    missed.tracker = MemoryTracker()
    assert main(["sync"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("toy: ")
    assert told.endswith(" records delivered, none left.\n")
    assert int(told.split()[1]) > 7
    assert len(missed.tracked()) == 7
    assert {kept.state for kept in missed.tracker.runs.values()} == {"finished"}
    assert main(["sync", "toy"]) == 0
    assert capsys.readouterr().out.startswith("Nothing waits for sqlite:///")


def test_a_server_that_is_still_away_exits_with_4_and_says_what_is_left(
    missed: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", "toy"]) == 4
    told = capsys.readouterr().err
    assert "connection refused; 0 of " in told
    assert "are left (toy). Nothing is lost" in told
    missed.tracker = MemoryTracker()
    assert main(["sync"]) == 0
    assert len(missed.tracked()) == 7


def test_a_sweep_that_is_being_run_is_left_to_its_driver(
    missed: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    missed.tracker = MemoryTracker()
    with Claim(missed.home.sweep("toy")):
        assert main(["sync"]) == 0
    assert "toy is being run by process" in capsys.readouterr().out
    assert missed.tracker.runs == {}


def test_what_a_server_refuses_is_told(
    missed: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    missed.tracker = Picky()
    assert main(["sync"]) == 0
    assert "of them were refused" in capsys.readouterr().out


def test_what_waits_for_another_server_is_told(
    missed: ToySweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert main(["sync"]) == 0
    told = capsys.readouterr().out
    assert "Nothing waits for http://127.0.0.1:1." in told
    assert "Records of toy wait for the home's own database: set MLFLOW_TRACKING_URI" in told
    assert missed.home.path.exists()


def test_an_unknown_sweep_is_told(missed: ToySweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "toi"]) == 2
    assert "did you mean 'toy'?" in capsys.readouterr().err
    assert missed.tracker.runs == {}


def test_a_run_names_what_its_server_refused(
    toy_cli: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_cli.tracker = Picky()
    assert main(["run", str(toy_cli.file()), "--in-process", "--quiet"]) == 0
    told = capsys.readouterr().err
    assert re.search(r"refused \d+ records; they are kept, with the reasons, in .*\.rejected", told)
