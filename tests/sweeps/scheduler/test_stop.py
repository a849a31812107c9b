"""Asking a running sweep to stop: the request, the driver that sees it, the command that waits."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.runs.identity import Identity
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.cli.status import sweep_status
from carft_sweep.sweeps.engines.base import Handler, Job, Wait
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.claim import FILE, LIMITS, Claim, ask_to_stop
from carft_sweep.sweeps.ledger.ledger import Ledger
from carft_sweep.sweeps.ledger.status import summaries
from carft_sweep.sweeps.scheduler.progress import LiveProgress, Progress, to_stderr
from carft_sweep.sweeps.scheduler.session import Interruption, SweepResult
from carft_sweep.tracking.errors import ServiceUnreachable
from tests.sweeps import toy_core
from tests.sweeps.conftest import ONE_RUN, Carft, ToySweep
from tests.sweeps.scheduler.dying import Hooked, at
from tests.tracking.memory_store import MemoryTracker

ROOT = Path(__file__).parents[3]
EVERY = 0.05
SLEEPER = """
import sys, time
from pathlib import Path
from carft_sweep.sweeps.ledger.claim import Claim

got = []
with Claim(Path(sys.argv[1]), got.append):
    print("ready", flush=True)
    until = time.monotonic() + 60
    while not got and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(float(sys.argv[2]))
print(got, flush=True)
"""


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carft_sweep.sweeps.ledger.claim.EVERY", EVERY)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def driver(folder: Path, lasting: float = 0.0) -> subprocess.Popen[str]:
    """A real process that holds the sweep until a request comes, and a while longer."""
    command = [sys.executable, "-c", SLEEPER, str(folder), str(lasting)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_each_request_is_passed_on_and_what_is_none_is_removed(tmp_path: Path) -> None:
    received: list[bool] = []
    with Claim(tmp_path, received.append):
        for now in (False, False, True):
            ask_to_stop(tmp_path, now=now)
            until(lambda: not (tmp_path / FILE).exists())
    assert received == [False, False, True]
    with Claim(tmp_path):
        assert ask_to_stop(tmp_path) is not None
        request = (tmp_path / FILE).read_text()
    assert not (tmp_path / FILE).exists()
    (tmp_path / FILE).write_text(request)  # as a driver that was killed leaves it
    received.clear()
    with Claim(tmp_path, received.append):
        until(lambda: not (tmp_path / FILE).exists())
        for text in ("[1]", "no JSON", '{"now": true}'):
            (tmp_path / FILE).write_text(text)
            until(lambda: not (tmp_path / FILE).exists())
        assert "carft-claim" in {thread.name for thread in threading.enumerate()}
    assert received == []
    assert "carft-claim" not in {thread.name for thread in threading.enumerate()}
    assert ask_to_stop(tmp_path) is None, "nobody drives"
    assert not (tmp_path / FILE).exists()


class Written(InProcessEngine):
    """Writes down how it is asked to stop."""

    def __init__(self) -> None:
        super().__init__(toy_core.ENTRY)
        self.asked: list[bool] = []

    def stop(self, *, now: bool = False) -> None:
        self.asked.append(now)
        super().stop(now=now)


def test_a_driver_that_is_stopping_already_is_hurried_only_by_a_request_for_now() -> None:
    engine, lines = Written(), list[str]()
    interruption = Interruption(engine, Progress(lines.append))
    for now in (False, False, True):
        interruption.stop(now)
    assert engine.asked == [False, True]
    assert lines == ["stopping after this epoch; once more stops at once"]


@pytest.mark.parametrize(
    ("number", "is_ignored", "asked"),
    [
        (signal.SIGINT, False, [False, True]),
        (signal.SIGTERM, False, [False, True]),
        (signal.SIGHUP, False, [False]),  # a terminal that is closed sends it twice
        (signal.SIGHUP, True, []),  # under `nohup`
    ],
)
def test_the_second_signal_stops_at_once(
    number: signal.Signals, is_ignored: bool, asked: list[bool]
) -> None:
    engine, before = Written(), signal.getsignal(number)
    if is_ignored:
        signal.signal(number, signal.SIG_IGN)
    ours = signal.getsignal(number)
    interruption = Interruption(engine, Progress(lambda _: None))
    interruption.phase = "running"
    try:
        with interruption.handling_signals():
            for count in (1, 2):
                os.kill(os.getpid(), number)
                assert engine.asked == asked[:count]
        assert signal.getsignal(number) is ours
    finally:
        signal.signal(number, before)


UNDER_A_TERMINAL = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from pathlib import Path
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.scheduler.progress import Progress, to_stderr
from carft_sweep.sweeps.scheduler.session import Interruption
interruption = Interruption(InProcessEngine(), Progress(to_stderr))
with interruption.handling_signals():
    print("ready", flush=True)
    until = time.monotonic() + 60
    while not interruption.is_requested and time.monotonic() < until:
        time.sleep(0.01)
to_stderr("the last epoch")
print("the result", flush=True)
Path(sys.argv[1]).write_text(str(interruption.is_requested))
"""


def test_a_driver_whose_terminal_is_closed_stops_after_the_epoch(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    terminal, end = pty.openpty()
    script = [sys.executable, "-c", UNDER_A_TERMINAL, str(ended)]
    with subprocess.Popen(
        script, stdin=end, stdout=end, stderr=end, start_new_session=True
    ) as driven:
        os.close(end)
        assert b"ready" in os.read(terminal, 1000)
        os.close(terminal)
        assert driven.wait(60) == 0
    assert ended.read_text() == "True"


def begun(home: Home, name: str = "toy") -> Path:
    metric = {"name": "id/val/top1", "goal": "maximize", "merge": None}
    spec = {"name": name, "description": "", "seeds": [0], "parameters": {}, "metric": metric}
    return Ledger.create(home.sweep(name), 1, spec, {}).file.parent


def test_stop_waits_until_the_driver_is_gone(tmp_path: Path, carft: Carft) -> None:
    process = driver(begun(Home(tmp_path)), lasting=0.5)
    # Somebody must collect it: a process that has ended and was not is still there for `kill`.
    collecting = threading.Thread(target=process.communicate)
    collecting.start()
    output = carft("stop", "toy", "--home", tmp_path).out
    collecting.join()
    assert process.returncode == 0
    assert f"Asked process {process.pid} on " in output
    assert "to stop after the epoch" in output
    assert f"toy has stopped. To go on: carft-sweep resume toy --home {tmp_path}" in output


def test_stop_does_not_wait_where_told_nor_where_nothing_runs(tmp_path: Path, carft: Carft) -> None:
    received: list[bool] = []
    with Claim(begun(Home(tmp_path)), received.append):
        assert "at once" in carft("stop", "toy", "--now", "--no-wait", "--home", tmp_path).out
        until(lambda: received == [True])
    assert carft("stop", "toy", "--home", tmp_path).out == "toy is not running.\n"
    for name in ("other", "../sweeps/toy", "toi"):
        near = "'toy'?" if name == "toi" else "Known: toy."
        assert near in carft("stop", name, "--home", tmp_path, code=2).err


def asked(toy: ToySweep, *, now: bool = False) -> Hooked:
    """An engine during whose first run somebody else asks the sweep to stop."""

    def ask() -> None:
        assert ask_to_stop(toy.home.sweep("toy"), now) is not None
        until(lambda: engine.is_stopping)

    engine = Hooked(run=at(1, ask))
    return engine


def test_a_sweep_that_is_asked_to_stop_is_interrupted_and_goes_on_later(toy: ToySweep) -> None:
    assert toy.run(asked(toy), **ONE_RUN).state == "interrupted"
    assert any("stopping after this epoch" in line for line in toy.lines)
    assert toy.run(**ONE_RUN).state == "done"


def test_a_sweep_is_stopped_while_it_is_planned_by_a_request_or_a_signal(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> None:
        assert ask_to_stop(toy.home.sweep("toy")) is not None
        until(lambda: any("stopping after this epoch" in line for line in toy.lines))

    signals = [signal.SIGINT]

    def signalled() -> None:
        with suppress(KeyboardInterrupt):  # as code in C does that calls back into Python
            while signals:
                signal.raise_signal(signals.pop())

    def twice() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    def plan(act: Callable[[], None]) -> str:
        def identify(config: TrialConfig, seed: int) -> Identity:
            act()
            return toy_core.toy_identity(config, seed)

        monkeypatch.setattr("carft_sweep.sweeps.plan.planner.identify", identify)
        return toy.run(**{**ONE_RUN, "baselines": ["zero_shot"]}).state

    assert [plan(act) for act in (asked, signalled)] == ["interrupted"] * 2
    with pytest.raises(KeyboardInterrupt):
        plan(twice)
    assert not toy.evaluated()


def test_a_sweep_outside_the_main_thread_is_stopped_and_its_process_lives_on(toy: ToySweep) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    engine, ended = asked(toy, now=True), list[SweepResult]()
    try:
        thread = threading.Thread(target=lambda: ended.append(toy.run(engine, **ONE_RUN)))
        thread.start()
        thread.join(60)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == []
    assert ended[0].state == "interrupted"


def test_a_request_for_now_closes_a_run_in_the_main_thread_where_it_is(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy.home.sweep("toy")

    def endless(*_: object, **__: object) -> None:
        assert ask_to_stop(folder, now=True) is not None
        time.sleep(60)

    monkeypatch.setattr(toy_core, "train_run", endless)
    begun = time.monotonic()
    assert toy.run().state == "interrupted"
    assert time.monotonic() - begun < 30


class Away(MemoryTracker):
    """A server that never answers."""

    def start_run(self, start: object) -> None:
        del start
        raise ServiceUnreachable("connection refused")


def test_an_interrupted_sweep_does_not_wait_for_a_server_that_is_away(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    engine = asked(toy_cli)
    toy_cli.tracker = Away()
    monkeypatch.setattr("carft_sweep.sweeps.api.make_engine", lambda *_, **__: engine)
    begun = time.monotonic()
    errors = carft("run", toy_cli.file(), "--in-process", code=3).err
    assert time.monotonic() - begun < 15
    assert "not in MLflow" in errors
    assert "connection refused" in errors


def test_who_is_refused_is_told_how_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "a home")
    for named, option in ((home.path, ""), ("elsewhere", f" --home '{home.path}'")):
        monkeypatch.setenv("CARFT_HOME", str(named))
        advice = re.escape(f"stop it: carft-sweep stop toy{option}, or")
        with Claim(home.sweep("toy")), pytest.raises(RequestError, match=advice):
            Claim(home.sweep("toy")).__enter__()


def test_a_line_of_a_signals_handler_may_come_within_another_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def within(_: str) -> int:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    with monkeypatch.context() as patch:
        patch.setattr(sys.stderr, "write", within)
        to_stderr("stopping after this epoch")
        console = Console(file=sys.stderr, force_terminal=True)
        LiveProgress(console).note("once more stops at once")
    assert capfd.readouterr().err == "stopping after this epoch\nonce more stops at once\n"


class Limited(InProcessEngine):
    """Requests limits of its own sweep while the first run is under way."""

    def run(self, handler: Handler) -> None:
        job = handler.next_job()
        assert isinstance(job, Job)
        for words in (["set", "toy", "parallel=1"], ["pause", "toy"]):
            assert main(words) == 0
            time.sleep(3 * EVERY)
            assert handler.next_job() is Wait.LATER
            if words[0] == "set":
                self._execute(handler, job)
                job = handler.next_job()
                assert isinstance(job, Job)
                self._execute(handler, job)
        assert sweep_status(find_home(None), "toy").state == "paused"
        assert [each["state"] for each in summaries(find_home(None))] == ["paused"]
        assert main(["resume", "toy"]) == 0
        time.sleep(3 * EVERY)
        super().run(handler)


def test_of_a_running_sweep_less_runs_at_once_and_none_begins_while_it_is_paused(
    toy_cli: ToySweep, carft: Carft
) -> None:
    result = toy_cli.run(Limited(toy_core.ENTRY))
    assert (result.state, result.done) == ("done", 7)
    notes = [line for line in toy_cli.lines if "at most 1 at once" in line or "paused" in line]
    assert len(notes) == 3
    assert not (toy_cli.home.sweep("toy") / LIMITS).exists()
    assert "toy is not running" in carft("pause", "toy").out
    assert "other keys are changed in the file" in carft("set", "toy", "seeds=5", code=2).err
