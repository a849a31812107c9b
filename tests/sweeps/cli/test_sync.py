"""A tracking server that is away, rejects us or lacks runs: what `run` and `sync` do about it."""

from __future__ import annotations

import re

import pytest

from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.ledger.claim import Claim
from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable, TrackingError
from carft_sweep.tracking.store.base import RunStart
from tests.sweeps.conftest import ONE_RUN, Carft, ToySweep
from tests.tracking.memory_store import MemoryTracker


class Away(MemoryTracker):
    """A server that does not answer."""

    def start_run(self, start: RunStart) -> None:
        del start
        raise ServiceUnreachable("connection refused")


class Picky(MemoryTracker):
    """A server that refuses every tag."""

    def set_tags(self, *_: object) -> None:
        raise TrackingError("no tags here")


@pytest.fixture
def missed(toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, carft: Carft) -> ToySweep:
    """A sweep that has ended, and of which its server knows nothing."""
    monkeypatch.setattr("carft_sweep.sweeps.scheduler.session.PATIENCE", 0.2)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    toy_cli.tracker = Away()
    told = carft("run", toy_cli.file(), "--in-process", "--quiet").err
    assert "7 runs are not in MLflow as they are here (connection refused); nothing is lost" in told
    assert "`carft-sweep sync` or the next run sends it" in told
    return toy_cli


def test_everything_is_sent_and_counted(missed: ToySweep, carft: Carft) -> None:
    missed.tracker = MemoryTracker()
    told = carft("sync").out
    assert told == "toy: 8 runs sent.\n", "seven, and the sweep's own"
    assert len(missed.tracked()) == 7
    assert {kept.state for kept in missed.tracker.runs.values()} == {"finished"}
    assert re.match(r"sqlite:///\S+ has every run as it is here\.", carft("sync", "toy").out)


def test_a_server_that_is_still_away_exits_with_4(missed: ToySweep, carft: Carft) -> None:
    told = carft("sync", "toy", code=4).err
    assert "connection refused; the runs of toy are not all sent. Nothing is lost" in told
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


def test_a_refusal_costs_no_other_request(missed: ToySweep, carft: Carft) -> None:
    missed.tracker = Picky()
    told = carft("sync").out
    assert told.startswith("toy: 8 runs sent.\n")
    assert told.count("was refused: no tags here") >= 8
    assert {run.state for run in missed.tracker.runs.values()} == {"finished"}


def test_a_run_names_what_its_server_refused(toy_cli: ToySweep, carft: Carft) -> None:
    toy_cli.tracker = Picky()
    told = carft("run", toy_cli.file(), "--in-process", "--quiet").err
    assert re.search(r"refused \d+ requests, first \w+ of run .+: no tags here;", told)
    assert "`carft-sweep sync` tries it again" in told


@pytest.mark.parametrize("name", ["history.json", "run.json", "evaluations/*/metrics.json"])
def test_a_damaged_run_alone_is_not_sent(missed: ToySweep, carft: Carft, name: str) -> None:
    digest = next(iter(missed.trained()))
    for file in (missed.home.runs / digest).glob(name):
        file.write_text("{")
    missed.tracker = MemoryTracker()
    told = carft("sync", code=1).out
    assert f"toy: run {digest[:12]} is not sent, since it cannot be read: " in told
    assert f"{file} is not JSON" in told
    sent = [run for run in missed.tracked().values() if run.state == "finished"]
    assert len(sent) == 6
    assert "has every run" not in carft("sync", code=1).out


def test_files_that_the_server_does_not_list_are_not_said_to_be_there(
    missed: ToySweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: MemoryTracker, key: object) -> set[str]:
        del self, key
        raise ServiceUnreachable("403 for ListBucket")

    missed.tracker = MemoryTracker()
    assert main(["sync"]) == 0
    monkeypatch.setattr(MemoryTracker, "artifacts", denied)
    capsys.readouterr()
    assert main(["sync"]) == 0
    told = "toy: its files could not be listed: 403 for ListBucket\n"
    assert capsys.readouterr().out == told


def test_a_study_that_cannot_be_written_is_said_and_costs_mlflow_nothing(
    missed: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed.tracker = MemoryTracker()
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", "postgresql://me:s3cret@127.0.0.1:9/optuna")
    told = carft("sync", code=4).out
    assert told.startswith("toy: 8 runs sent.\ntoy: its Optuna study is not written: ")
    assert "s3cret" not in told


class Unreached(MemoryTracker):
    """A store that says so beforehand, and takes everything afterwards."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def preflight(self) -> None:
        raise self.error


def run(toy: ToySweep, monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    tracker = Unreached(error)
    monkeypatch.setattr("carft_sweep.sweeps.api.open_store", lambda *_, **__: tracker)
    return main(["run", str(toy.file(baselines=[], seeds=1))])


@pytest.mark.parametrize(
    ("error", "code"), [(AccessDenied("wrong password"), 2), (TrackingError("another version"), 2)]
)
def test_a_server_that_will_not_have_us_is_said_before_training(
    toy_cli: ToySweep,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
) -> None:
    assert run(toy_cli, monkeypatch, error) == code
    told = capsys.readouterr()
    assert told.err == f"carft-sweep: {error}\n"
    assert toy_cli.trained() == {}
    assert not toy_cli.home.sweep("toy").exists()
    assert main(["list"]) == 0


def test_another_database_that_is_damaged_is_named_with_its_remedy(
    toy: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run(**ONE_RUN)
    damaged = toy.folder / "lab.db"
    damaged.write_bytes(b"nothing")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{damaged}")
    told = carft("sync", "--home", toy.home.path, code=2).err
    assert f"{damaged} cannot be used: file is not a database" in told
    assert "name another one in MLFLOW_TRACKING_URI" in told
    assert "when the server answers" not in told
    assert damaged.read_bytes() == b"nothing"
