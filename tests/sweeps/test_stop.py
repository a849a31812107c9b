"""Asking a running sweep to stop: the request, the driver that sees it, the command that waits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from carft_core.errors import RequestError
from sweeps.cli import main
from sweeps.engines.base import Handler, Job
from sweeps.engines.local import InProcessEngine
from sweeps.home import Home
from sweeps.ledger.claim import FILE, Claim, StopRequests, ask_to_stop
from tests.sweeps import toy_core
from tests.sweeps.conftest import ToySweep
from tracking.errors import ServiceUnreachable
from tracking.spool import Spool
from tracking.store.memory_store import MemoryTracker

ROOT = Path(__file__).parents[2]
SLEEPER = """
import signal, sys, time
from pathlib import Path
from sweeps.ledger.claim import Claim
from sweeps.ledger.claim import StopRequests

count = 0

def handle(number, frame):
    global count
    count += 1

signal.signal(signal.SIGTERM, handle)
with Claim(Path(sys.argv[1])), StopRequests(Path(sys.argv[1]), lambda: count > 0):
    print("ready", flush=True)
    until = time.monotonic() + 60
    while count < int(sys.argv[2]) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(float(sys.argv[3]))
print(count, flush=True)
"""


@pytest.fixture
def received() -> Iterator[list[int]]:
    """The SIGTERMs that this process got."""
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    yield got
    signal.signal(signal.SIGTERM, before)


def until(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def driver(folder: Path, signals: int, lasting: float = 0.0) -> subprocess.Popen[str]:
    """A real process that holds the sweep until it has got so many signals, and a while longer."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(folder), str(signals), str(lasting)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_request_reaches_the_driver_as_one_signal(tmp_path: Path) -> None:
    process = driver(tmp_path, 1, lasting=1.2)
    asked = ask_to_stop(tmp_path)
    assert asked is not None
    assert asked.pid == process.pid
    assert process.communicate(timeout=60)[0] == "1\n"
    assert not (tmp_path / FILE).exists()


def test_a_request_for_now_reaches_it_as_two(tmp_path: Path) -> None:
    process = driver(tmp_path, 2, lasting=1.2)
    ask_to_stop(tmp_path, now=True)
    assert process.communicate(timeout=60)[0] == "2\n"


def test_asking_again_changes_nothing_and_asking_for_now_adds_one(
    tmp_path: Path, received: list[int]
) -> None:
    with Claim(tmp_path), StopRequests(tmp_path, lambda: bool(received)):
        for _ in range(2):
            ask_to_stop(tmp_path)
            until(lambda: not (tmp_path / FILE).exists())
        until(lambda: received)
        assert len(received) == 1
        ask_to_stop(tmp_path, now=True)
        until(lambda: len(received) == 2)


def test_a_driver_that_is_stopping_anyway_is_not_hurried_by_a_plain_request(
    tmp_path: Path, received: list[int]
) -> None:
    with Claim(tmp_path), StopRequests(tmp_path, lambda: True):
        ask_to_stop(tmp_path)
        until(lambda: not (tmp_path / FILE).exists())
    assert received == []


def test_a_request_to_an_earlier_driver_is_removed_and_not_obeyed(
    tmp_path: Path, received: list[int]
) -> None:
    with Claim(tmp_path):
        ask_to_stop(tmp_path)
    assert (tmp_path / FILE).exists()
    with Claim(tmp_path), StopRequests(tmp_path):
        until(lambda: not (tmp_path / FILE).exists())
    assert received == []


def test_what_is_no_request_is_removed_and_not_obeyed(tmp_path: Path, received: list[int]) -> None:
    with Claim(tmp_path), StopRequests(tmp_path):
        for text in ("[1]", "no JSON", '{"now": true}'):
            (tmp_path / FILE).write_text(text)
            until(lambda: not (tmp_path / FILE).exists())
    assert received == []


def test_nobody_is_asked_when_nobody_drives(tmp_path: Path) -> None:
    assert ask_to_stop(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_thread_ends_with_the_driver(tmp_path: Path) -> None:
    with Claim(tmp_path), StopRequests(tmp_path):
        assert "carft-requests" in {thread.name for thread in threading.enumerate()}
    assert "carft-requests" not in {thread.name for thread in threading.enumerate()}


def begun(home: Home, name: str = "toy") -> Path:
    folder = home.sweep(name)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"name": name, "state": "running"}))
    return folder


def test_stop_waits_until_the_driver_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = driver(begun(Home(tmp_path)), 1, lasting=0.5)
    # Somebody must collect it: a process that has ended and was not is still there for `kill`.
    collecting = threading.Thread(target=process.communicate)
    collecting.start()
    assert main(["stop", "toy", "--home", str(tmp_path)]) == 0
    collecting.join()
    assert process.returncode == 0
    told = capsys.readouterr().out
    assert f"Asked process {process.pid} on " in told
    assert "to stop after the epoch" in told
    assert f"toy has stopped. To go on: carft-sweep resume toy --home {tmp_path}" in told


def test_stop_now_and_no_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = driver(begun(Home(tmp_path)), 2)
    assert main(["stop", "toy", "--now", "--no-wait", "--home", str(tmp_path)]) == 0
    assert "at once" in capsys.readouterr().out
    assert process.communicate(timeout=60)[0] == "2\n"


def test_stop_says_when_nothing_runs_and_names_the_nearest_when_nothing_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(Home(tmp_path))
    assert main(["stop", "toy", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "toy is not running.\n"
    for name in ("toi", "../sweeps/toy"):
        assert main(["stop", name, "--home", str(tmp_path)]) == 2
        assert "Known: toy." in capsys.readouterr().err
    main(["stop", "toi", "--home", str(tmp_path)])
    assert "did you mean 'toy'?" in capsys.readouterr().err


class Asked(InProcessEngine):
    """Somebody else asks the sweep to stop once its first trial trains."""

    folder: Path

    def run(self, handler: object) -> None:
        assert ask_to_stop(self.folder) is not None
        until(lambda: self._stopping)
        super().run(handler)  # type: ignore[arg-type]


def test_a_sweep_that_is_asked_to_stop_is_interrupted_and_goes_on_later(toy: ToySweep) -> None:
    engine = Asked(toy_core.ENTRY)
    engine.folder = toy.home.sweep("toy")
    ended = toy.run(engine)
    assert ended.interrupted
    assert ended.exit_code == 3
    assert any("stopping after this epoch" in line for line in toy.lines)
    assert toy.run().exit_code == 0


class Away(MemoryTracker):
    """A server that never answers."""

    def open(self, start: object) -> None:
        del start
        raise ServiceUnreachable("connection refused")


def test_an_interrupted_sweep_does_not_wait_for_a_server_that_is_away(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Asked(toy_core.ENTRY)
    engine.folder = toy_cli.home.sweep("toy")
    spool = Spool(Away(), toy_cli.home.path / "spool", pace=0.01)
    spool.last_error = "connection refused"  # of a delivery before
    monkeypatch.setattr("sweeps.api.choose", lambda *_, **__: engine)
    monkeypatch.setattr("sweeps.api.open_tracking", lambda _: spool)
    begun = time.monotonic()
    assert main(["run", str(toy_cli.file()), "--in-process"]) == 3
    assert time.monotonic() - begun < 15
    assert "records still wait for the tracking server" in capsys.readouterr().err


def test_who_is_refused_is_told_how_to_stop_the_driver_from_here(tmp_path: Path) -> None:
    with (
        Claim(tmp_path / "toy"),
        pytest.raises(RequestError, match=r"stop it: carft-sweep stop toy"),
        Claim(tmp_path / "toy"),
    ):
        pass


class AskedInARun(InProcessEngine):
    """Somebody else asks the sweep to stop while its first run trains."""

    folder: Path

    def _execute(self, handler: Handler, job: Job) -> None:
        assert ask_to_stop(self.folder) is not None
        until(lambda: self._stopping)
        super()._execute(handler, job)


def test_show_calls_a_trial_running_only_while_somebody_runs_the_sweep(
    toy: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = AskedInARun(toy_core.ENTRY)
    engine.folder = toy.home.sweep("toy")
    assert toy.run(engine, baselines=[], seeds=1).interrupted
    show = ["show", "toy", "--home", str(toy.home.path)]
    main(show)
    told = capsys.readouterr().out
    assert "1 trials: 1 unfinished" in told
    assert "trial 0  unfinished  car_ft kl_weight=0.1" in told
    with Claim(toy.home.sweep("toy")):
        main(show)
    told = capsys.readouterr().out
    assert "1 trials: 1 running" in told
    assert "trial 0  running  car_ft" in told
    main([*show, "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["counts"]["running"], shown["trials"][0]["state"]) == (1, "running")
