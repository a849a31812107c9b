"""What `run` does about a tracking server before anything is trained."""

from __future__ import annotations

import pytest

from sweeps.cli import main
from tests.sweeps.conftest import ToySweep
from tracking.errors import AccessDenied, HostNotFound, ServiceUnreachable, TrackingError
from tracking.store.memory_store import MemoryTracker


class Unreached(MemoryTracker):
    """A store that says so beforehand, and takes everything afterwards."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def preflight(self) -> None:
        raise self.error


def run(toy: ToySweep, monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    tracker = Unreached(error)
    monkeypatch.setattr("sweeps.api.open_store", lambda _: tracker)
    return main(["run", str(toy.file(baselines=[], seeds=1))])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AccessDenied("wrong password"), 2),
        (TrackingError("another version"), 2),
    ],
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


@pytest.mark.parametrize("kind", [ServiceUnreachable, HostNotFound])
def test_a_sweep_goes_on_without_a_server_that_is_away(
    toy_cli: ToySweep,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: type[ServiceUnreachable],
) -> None:
    assert run(toy_cli, monkeypatch, kind("no server answers")) == 0
    told = capsys.readouterr().err
    assert "no server answers. The sweep runs all the same; its runs are sent when" in told
