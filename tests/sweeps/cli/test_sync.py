"""A tracking server that is away, rejects us or lacks runs: what `run` and `sync` do about it."""

from __future__ import annotations

import re

import pytest

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
    printed = carft("run", toy_cli.file(), "--in-process", "--quiet").err
    lacking = "7 runs are not in MLflow as they are here (connection refused); nothing is lost"
    assert lacking in printed
    assert "`carft-sweep sync` or the next run sends it" in printed
    return toy_cli


def test_everything_is_sent_and_counted_once_the_server_answers_and_the_sweep_is_over(
    missed: ToySweep, carft: Carft
) -> None:
    printed = carft("sync", "toy", code=4).err
    assert "connection refused; the runs of toy are not all sent. Nothing is lost" in printed
    missed.tracker = MemoryTracker()
    with Claim(missed.home.sweep("toy")):
        assert "toy is being run by process" in carft("sync").out
    assert missed.tracker.runs == {}
    assert carft("sync").out == "toy: 8 runs sent.\n", "seven, and the sweep's own"
    assert len(missed.tracked()) == 7
    assert {run.state for run in missed.tracker.runs.values()} == {"finished"}
    assert re.match(r"sqlite:///\S+ has every run as it is here\.", carft("sync", "toy").out)


def test_a_refusal_costs_no_other_request_and_is_named(toy_cli: ToySweep, carft: Carft) -> None:
    toy_cli.tracker = Picky()
    printed = carft("run", toy_cli.file(), "--in-process", "--quiet").err
    assert re.search(r"refused \d+ requests, first \w+ of run .+: no tags here;", printed)
    assert "`carft-sweep sync` tries it again" in printed
    toy_cli.tracker = Picky()
    printed = carft("sync").out
    assert printed.startswith("toy: 8 runs sent.\n")
    assert printed.count("was refused: no tags here") >= 8
    assert {run.state for run in toy_cli.tracker.runs.values()} == {"finished"}


@pytest.mark.parametrize("name", ["history.json", "run.json", "evaluations/*/metrics.json"])
def test_a_damaged_run_alone_is_not_sent(missed: ToySweep, carft: Carft, name: str) -> None:
    digest = next(iter(missed.trained()))
    for file in (missed.home.runs / digest).glob(name):
        file.write_text("{")
    missed.tracker = MemoryTracker()
    printed = carft("sync", code=1).out
    assert f"toy: run {digest[:12]} is not sent, since it cannot be read: " in printed
    assert f"{file} is not JSON" in printed
    sent = [run for run in missed.tracked().values() if run.state == "finished"]
    assert len(sent) == 6
    assert "has every run" not in carft("sync", code=1).out


def test_a_study_that_cannot_be_written_and_files_that_are_not_listed_are_said(
    missed: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> set[str]:
        raise ServiceUnreachable("403 for ListBucket")

    missed.tracker = MemoryTracker()
    with monkeypatch.context() as patch:
        patch.setenv("CARFT_OPTUNA_STORAGE", "postgresql://me:s3cret@127.0.0.1:9/optuna")
        printed = carft("sync", code=4).out
    assert printed.startswith("toy: 8 runs sent.\ntoy: its Optuna study is not written: ")
    assert "s3cret" not in printed
    monkeypatch.setattr(MemoryTracker, "artifacts", denied)
    assert carft("sync").out == "toy: its files could not be listed: 403 for ListBucket\n"


@pytest.mark.parametrize(
    "error", [AccessDenied("wrong password"), TrackingError("another version")], ids=str
)
def test_a_server_that_will_not_have_us_is_said_before_training(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, carft: Carft, error: Exception
) -> None:
    def preflight(_: MemoryTracker) -> None:
        raise error

    monkeypatch.setattr(MemoryTracker, "preflight", preflight)
    printed = carft("run", toy_cli.file(baselines=[], seeds=1), code=2).err
    assert printed == f"carft-sweep: {error}\n"
    assert toy_cli.trained() == {}
    assert not toy_cli.home.sweep("toy").exists()
    carft("list")


def test_another_database_that_is_damaged_is_named_with_its_remedy(
    toy: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run(**ONE_RUN)
    damaged = toy.folder / "lab.db"
    damaged.write_bytes(b"nothing")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{damaged}")
    printed = carft("sync", "--home", toy.home.path, code=2).err
    assert f"{damaged} cannot be used: file is not a database" in printed
    assert "name another one in MLFLOW_TRACKING_URI" in printed
    assert "when the server answers" not in printed
    assert damaged.read_bytes() == b"nothing"
