"""MLflow's server on a home: it starts and ends, answers to this machine alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.ownership import SHARED_HOMES_VARIABLE
from carft_sweep.tracking.store.base import RunKey, RunStart
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from carft_sweep.tracking.ui_server import Server, _free_port, serve
from tests.tracking.conftest import group_is_gone
from tests.tracking.made_up import known

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.xdist_group("ui")


def test_it_shows_a_homes_runs_and_files(server: Server, server_home: Path, tmp_path: Path) -> None:
    store = MlflowStore(f"sqlite:///{server_home}/mlflow.db", "home", server_home / "artifacts")
    key = RunKey("kl_weight")
    store.start_run(RunStart(key, "kl_weight", 1))
    file = tmp_path / "config.json"
    file.write_text('{"here": true}')
    store.log_artifact(key, file)
    run_id = MlflowStore(server.address, "home").run_id(key)
    assert run_id == store.run_id(key)
    shown = f"{server.address}/get-artifact?path=config.json&run_uuid={run_id}"
    assert requests.get(shown, timeout=10).content == b'{"here": true}'
    assert "MLflow" in requests.get(server.address, timeout=10).text


STAND_IN = """
import http.server, os, subprocess, sys
if "fail" in os.environ.get("STAND_IN", ""):
    raise ValueError("the reason why")
open(os.environ["MLFLOW_BACKEND_STORE_URI"].removeprefix("sqlite:///"), "a").close()
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if "mute" in os.environ.get("STAND_IN", "") else 200)
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
def test_the_command_ends_its_server_too(stand_in: str, number: signal.Signals, when: str) -> None:
    code = (
        "import sys; from carft_sweep.tracking.ui_server import serve\n"
        "server = serve(sys.argv[1], None, port=0)\n"
        "print(server.process.pid, flush=True)\n"
        "server.wait()"
    )
    started = [sys.executable, "-c", code, stand_in]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as command:
        leader = int(known(command.stdout).readline())
        if when == "while it waits":
            time.sleep(0.3)
        command.send_signal(number)
        assert command.wait(30) != 0
    assert group_is_gone(leader)


@pytest.mark.parametrize(("shared", "mode"), [(False, 0o600), (True, 0o644)])
def test_what_it_makes_is_its_owners_alone_unless_the_home_is_shared(
    stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, mode: int
) -> None:
    monkeypatch.setenv(SHARED_HOMES_VARIABLE, str(tmp_path) if shared else "")
    before = os.umask(0o022)
    try:
        serve(stand_in, tmp_path / "mlartifacts", port=0).stop()
    finally:
        os.umask(before)
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == mode


def test_no_proxy_is_asked_for_the_server_on_this_machine_and_sigterm_is_given_back(
    stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        server = serve(stand_in, None, port=0, start_seconds=20)
        meanwhile = signal.getsignal(signal.SIGTERM)
        server.stop()
        assert meanwhile is not signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_server_of_somebody_else_is_only_named_and_a_taken_port_is_said(stand_in: str) -> None:
    server = serve("https://ada:secret@lab.example.org/mlflow", None)
    assert (server.address, server.process) == ("https://lab.example.org/mlflow", None)
    server.stop()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(TrackingError, match=rf"port {port} is taken on 127\.0\."):
            serve(stand_in, None, port=port)


def test_a_server_that_ends_at_once_says_why_and_one_that_says_nothing_is_ended(
    stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "fail")
    with pytest.raises(TrackingError, match=r"ended at once:\nValueError: the reason why$"):
        serve(stand_in, None, port=0)
    monkeypatch.setenv("STAND_IN", "mute")
    port = _free_port(0)
    with pytest.raises(ServiceUnreachable, match="does not answer after 1 s"):
        serve(stand_in, None, port=port, start_seconds=1)
    assert _free_port(port) == port


HOSTILE_PAGES = (
    *("http://localhost.attacker.example", "http://127.0.0.1.attacker.example", "http://10.1.1.1"),
    *("https://attacker.example", "http://[::1].attacker.example", "null", "*", "file://"),
    # Whoever else has a server on this machine; MLflow by itself lets in each of its ports.
    *("http://localhost", "http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080"),
)


def test_it_answers_to_this_machines_names_alone_and_no_page_of_another_host_can_read_it(
    server: Server,
) -> None:
    asked = f"{server.address}/ajax-api/2.0/mlflow/experiments/search?max_results=1"
    assert requests.get(asked, timeout=10).status_code == 200
    for origin in HOSTILE_PAGES:
        answer = requests.get(asked, headers={"Origin": origin}, timeout=10)
        assert answer.status_code == 403, origin
        assert "Access-Control-Allow-Origin" not in answer.headers, origin
    for host, status in (
        ("localhost:8080", 200),  # the end of a tunnel
        ("127.0.0.1", 200),
        ("mlflow.lab.example", 403),
        ("192.168.0.1", 403),  # which MLflow lets in by itself
    ):
        answer = requests.get(server.address, headers={"Host": host}, timeout=10)
        assert answer.status_code == status, host
