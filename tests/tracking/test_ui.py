"""MLflow's server comes up on a home, shows it, and goes without a trace."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.tracking.conftest import NewDatabase
from tracking.errors import ServiceUnreachable, TrackingError
from tracking.store.base import RunKey, RunStart
from tracking.store.mlflow_store import MlflowStore
from tracking.ui_server import _free_port, serve

ROOT = Path(__file__).parents[2]


def group_is_gone(leader: int) -> bool:
    for _ in range(50):
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_it_shows_runs_and_artifacts_of_a_home_and_ends_with_its_children(
    new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    uri, artifacts = new_database(), tmp_path / "mlartifacts"
    store = MlflowStore(uri, "home", artifacts)
    key = RunKey("kl_weight")
    store.start_run(RunStart(key, "kl_weight", 1))
    file = tmp_path / "config.json"
    file.write_text('{"here": true}')
    store.log_artifact(key, file)

    server = serve(uri, artifacts, port=5800)
    assert server.process is not None
    try:
        assert MlflowStore(server.address, "home").run_id(key) is None
        run_id = store.run_id(key)
        shown = f"{server.address}/get-artifact?path=config.json&run_uuid={run_id}"
        with urllib.request.urlopen(shown, timeout=10) as answer:
            assert answer.read() == b'{"here": true}'
        with urllib.request.urlopen(server.address, timeout=10) as answer:
            assert b"MLflow" in answer.read()
    finally:
        server.stop()
    server.stop()
    assert group_is_gone(server.process.pid)


STAND_IN = """
import http.server, os, signal, subprocess, sys, time
if "fail" in os.environ.get("STAND_IN", ""):
    sys.exit("the reason why")
if "slow" in os.environ.get("STAND_IN", ""):
    time.sleep(600)
name, _, value = sys.argv[sys.argv.index("--uvicorn-opts") + 1].split()[1].partition(":")
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if "mute" in os.environ.get("STAND_IN", "") else 200)
        self.send_header(name, value)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A `python -m mlflow` that starts at once and has a child that does not heed SIGTERM."""
    package = tmp_path / "stand_in" / "mlflow"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(STAND_IN)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}{os.pathsep}{ROOT}")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["at once", "while it waits"])
def test_the_command_takes_its_server_with_it(
    stand_in: str, number: signal.Signals, when: str
) -> None:
    code = (
        "import sys; from tracking.ui_server import serve\n"
        "server = serve(sys.argv[1], None, port=5900)\n"
        "print(server.process.pid, flush=True)\n"
        "server.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, stand_in], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as command:
        assert command.stdout is not None
        leader = int(command.stdout.readline())
        if when == "while it waits":
            time.sleep(0.3)
        command.send_signal(number)
        assert command.wait(30) != 0
    assert group_is_gone(leader)


def test_an_address_with_a_password_stands_on_no_command_line(stand_in: str) -> None:
    server = serve(stand_in, None, port=0)
    assert server.process is not None
    try:
        command = Path(f"/proc/{server.process.pid}/cmdline")
        if command.exists():  # Linux
            assert b"sqlite:" not in command.read_bytes()
    finally:
        server.stop()


def test_stopping_gives_sigterm_back(stand_in: str) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        server = serve(stand_in, None, port=5950)
        meanwhile = signal.getsignal(signal.SIGTERM)
        server.stop()
        assert meanwhile is not signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_server_of_somebody_else_is_only_named() -> None:
    server = serve("https://lab.example.org/mlflow", None)
    assert (server.address, server.process) == ("https://lab.example.org/mlflow", None)
    server.stop()


def test_a_busy_port_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        if port > 65_000:
            pytest.skip("too near the last port")
        assert port < _free_port("127.0.0.1", port, port + 19) < port + 20


def test_no_free_port_is_said_with_the_ports_that_were_tried() -> None:
    with ExitStack() as taken:
        for _ in range(65530, 65536):
            port = _free_port("127.0.0.1", 65530, 65535)
            taken.enter_context(socket.create_server(("127.0.0.1", port)))
        with pytest.raises(TrackingError, match="no port from 65530 to 65535 is free"):
            _free_port("127.0.0.1", 65530, 65535)


def test_a_port_that_was_asked_for_alone_is_this_or_none(stand_in: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as busy,
        pytest.raises(TrackingError, match=rf"port {busy.getsockname()[1]} is taken on 127\.0\."),
    ):
        serve(stand_in, None, port=busy.getsockname()[1], other_ports=False)


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(TrackingError, match=r"no-such-host\.invalid"):
        _free_port("no-such-host.invalid", 5000, 5019)


def test_a_server_that_ends_at_once_says_why(
    stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "fail")
    with pytest.raises(TrackingError, match="ended at once:\nthe reason why"):
        serve(stand_in, None, port=6000)


def test_a_server_that_does_not_answer_in_time_is_ended(
    stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "mute")
    with pytest.raises(ServiceUnreachable, match="does not answer after 1 s"):
        serve(stand_in, None, port=6100, start_seconds=1)
    assert _free_port("127.0.0.1", 6100, 6100) == 6100


@pytest.mark.parametrize("own", ["", "slow"])
def test_a_server_that_took_the_port_meanwhile_is_not_taken_for_ours(
    stand_in: str, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    """Its health would be reported, and its end would be the end of what was shown as ours."""
    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        looks = iter([other.server_port])
        free = _free_port

        def too_early(host: str, first: int, last: int) -> int:
            taken = next(looks, None)
            if taken is not None:
                monkeypatch.setenv("STAND_IN", own)
                return taken
            monkeypatch.setenv("STAND_IN", "")
            return free(host, first, last)

        monkeypatch.setattr("tracking.ui_server._free_port", too_early)
        server = serve(stand_in, None, port=other.server_port)
        assert server.process is not None
        try:
            assert server.address != f"http://127.0.0.1:{other.server_port}"
            with urllib.request.urlopen(f"{server.address}/health", timeout=10) as answer:
                assert answer.headers["X-Carft-Sweep-Server"]
        finally:
            server.stop()
            other.shutdown()


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers everything, as another server would."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
