"""MLflow's server on a home: it starts and ends, answers to its names, and knows its users."""

from __future__ import annotations

import configparser
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
import requests
from flask_cors.core import probably_regex
from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request

from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.ownership import SHARED_HOMES_VARIABLE
from carft_sweep.tracking.store.base import RunKey, RunStart
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from carft_sweep.tracking.ui_server import (
    Server,
    _free_port,
    allowed_hosts,
    allowed_origins,
    check_name,
    is_loopback,
    prepare,
    serve,
)
from tests.mounts import mount
from tests.tracking.conftest import NewDatabase

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.xdist_group("ui")


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

    server = serve(uri, artifacts, port=0)
    assert server.process is not None
    try:
        run_id = MlflowStore(server.address, "home").run_id(key)
        assert run_id == store.run_id(key)
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
def test_the_command_takes_its_server_with_it(
    stand_in: str, number: signal.Signals, when: str
) -> None:
    code = (
        "import sys; from carft_sweep.tracking.ui_server import serve\n"
        "server = serve(sys.argv[1], None, port=0)\n"
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


def test_a_proxy_is_not_asked_for_the_server_on_this_machine(
    stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    serve(stand_in, None, port=0, start_seconds=20).stop()


def test_stopping_gives_sigterm_back(stand_in: str) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        server = serve(stand_in, None, port=0)
        meanwhile = signal.getsignal(signal.SIGTERM)
        server.stop()
        assert meanwhile is not signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_server_of_somebody_else_is_only_named_without_its_password() -> None:
    server = serve("https://ada:secret@lab.example.org/mlflow", None)
    assert (server.address, server.process) == ("https://lab.example.org/mlflow", None)
    server.stop()


def test_a_port_that_is_taken_is_said(stand_in: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as busy,
        pytest.raises(TrackingError, match=rf"port {busy.getsockname()[1]} is taken on 127\.0\."),
    ):
        serve(stand_in, None, port=busy.getsockname()[1])


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(TrackingError, match=r"no-such-host\.invalid"):
        _free_port("no-such-host.invalid", 5000)


def test_a_server_that_ends_at_once_says_why(
    stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "fail")
    with pytest.raises(TrackingError, match=r"ended at once:\nValueError: the reason why$"):
        serve(stand_in, None, port=0)


def test_a_server_that_does_not_answer_in_time_is_ended(
    stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "mute")
    port = _free_port("127.0.0.1", 0)
    with pytest.raises(ServiceUnreachable, match="does not answer after 1 s"):
        serve(stand_in, None, port=port, start_seconds=1)
    assert _free_port("127.0.0.1", port) == port


NAMES = ("mlflow.lab.example", "10.0.0.7:5000")


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("mlflow.lab.example", True),
        ("mlflow.lab.example:8443", True),
        ("10.0.0.7:5000", True),
        ("10.0.0.7", False),
        ("10.0.0.8:5000", False),
        ("192.168.0.1", False),  # which MLflow lets in by itself
        ("lab.example", False),
        ("mlflow.lab.example.elsewhere.example", False),
        ("mlflow.lab.example:5000.elsewhere.example", True),  # no browser sends such a port
        ("", False),
    ],
)
def test_it_answers_to_its_names_and_to_nothing_else(host: str, answers: bool) -> None:
    hosts = allowed_hosts("127.0.0.1", NAMES)
    assert is_allowed_host_header(hosts, host) == answers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_on_every_address_it_knows_this_machines_name(host: str) -> None:
    hosts = allowed_hosts(host, ())
    assert is_allowed_host_header(hosts, f"{socket.gethostname()}:5000")
    assert not is_allowed_host_header(hosts, "elsewhere.example:5000")
    assert f"http://{socket.gethostname()}:5000" in allowed_origins(host, (), 5000)


def test_on_one_address_it_knows_that() -> None:
    assert is_allowed_host_header(allowed_hosts("10.0.0.9", ()), "10.0.0.9:5000")
    assert is_allowed_host_header(allowed_hosts("fd00::9", ()), "[fd00::9]:5000")
    assert "http://10.0.0.9:5000" in allowed_origins("10.0.0.9", (), 5000)


@pytest.mark.parametrize(
    ("page", "blocked"),
    [
        ("http://localhost:8080", False),  # the end of a tunnel
        ("https://mlflow.lab.example", False),
        ("http://mlflow.lab.example", False),
        ("http://mlflow.lab.example:5000", False),
        ("https://10.0.0.7:5000", False),
        ("http://mlflow.lab.example:8080", True),  # a port that was not named
        ("https://elsewhere.example", True),
        ("null", True),
    ],
)
def test_only_pages_of_its_names_may_ask_it(page: str, blocked: bool) -> None:
    origins = allowed_origins("127.0.0.1", NAMES, 5000)
    assert should_block_cors_request(page, "POST", origins) == blocked


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "fd00::9", "::", "10.0.0.9"])
def test_no_origin_is_a_pattern(host: str) -> None:
    origins = allowed_origins(host, ("mlflow.lab.example", "lab:8443"), 5000)
    assert {"https://mlflow.lab.example", "https://lab:8443"} <= {*origins}
    assert not any(map(probably_regex, origins))
    assert not any("localhost" in origin for origin in origins), "MLflow lets it in, anchored"


def allowed(address: str, origin: str, host: str = "") -> str | None:
    """Ask for experiments as a page of `origin` does; whom the answer lets read it."""
    path = "/ajax-api/2.0/mlflow/experiments/search?max_results=1"
    headers = {"Origin": origin} | ({"Host": host} if host else {})
    answer = requests.get(f"{address}{path}", headers=headers, timeout=10)
    named: str | None = answer.headers.get("Access-Control-Allow-Origin")
    assert answer.status_code == (403 if named is None else 200)
    return named


HOSTILE_PAGES = (
    *("http://localhost.attacker.example", "http://localhostx.example", "http://localhost:1x"),
    *("http://127.0.0.1.attacker.example", "http://127x0x0x1.example", "http://127.0.0.10"),
    *("http://1.attacker.example", "https://1.attacker.example", "http://192.168.0.1"),
    *("http://10.1.1.1", "http://[::1].attacker.example", "http://:attacker.example"),
    *("https://mlflow.lab.example.attacker.example", "https://mlflowXlab.example"),
    *("https://mlflow.lab.example:1", "https://a.mlflow.lab.example", "null", "*", "file://"),
    # Whoever else has a server on this machine; MLflow by itself lets in each of its ports.
    *("http://localhost", "http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080"),
)


@pytest.mark.parametrize("origin", HOSTILE_PAGES)
def test_a_page_of_another_host_cannot_read_what_it_answers(server: Server, origin: str) -> None:
    assert allowed(server.address, origin) is None


def test_its_own_pages_can_read_what_it_answers(server: Server) -> None:
    for origin in ("https://mlflow.lab.example", server.address):
        assert allowed(server.address, origin) == origin


def test_a_page_at_the_end_of_a_tunnel_is_one_of_its_own(server: Server) -> None:
    assert allowed(server.address, "http://localhost:8080", "localhost:8080") is not None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *[(name, "is no host") for name in ("http://lab", "lab/mlflow", "a b", "-lab", "lab:")],
        *[(name, "name each host") for name in ("*", "*.lab.example", "*lab", "lab:*")],
        *[(name, "give it a name") for name in ("[fd00::7]", "[fd00::7]:5000", "[fd00::7")],
    ],
)
def test_what_is_no_host_is_refused(name: str, said: str) -> None:
    for other in NAMES:
        check_name(other)
    with pytest.raises(ValueError, match=said):
        check_name(name)


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("localhost", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("lab", False),
        ("10.0.0.1", False),
    ],
)
def test_which_addresses_this_machine_alone_reaches(host: str, alone: bool) -> None:
    assert is_loopback(host) == alone


PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
KEY = "MLFLOW_FLASK_SERVER_SECRET_KEY"
GIVEN = "a password that is given"


def typed() -> str:
    return GIVEN


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PASSWORD, KEY, "CARFT_UI_PASSWORD", "MLFLOW_AUTH_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)


def begun(database: Path) -> None:
    """As MLflow leaves its users."""
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("CREATE TABLE users (username text, is_admin boolean)")
        opened.execute("INSERT INTO users VALUES ('admin', 1)")
        opened.commit()


def test_what_a_first_start_makes_is_its_owners_alone(tmp_path: Path) -> None:
    first, again = prepare(tmp_path, typed), prepare(tmp_path, typed)
    assert len({first.environ[KEY], again.environ[KEY], ""}) == 3
    assert first.environ[PASSWORD] not in first.note
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "ui").iterdir()}
    assert modes == dict.fromkeys(("basic_auth.ini", "users.db"), 0o600)
    assert (tmp_path / "ui").stat().st_mode & 0o777 == 0o700


def test_the_configuration_names_a_database_of_its_own(tmp_path: Path) -> None:
    home = tmp_path / "50% of it"
    config = configparser.ConfigParser()
    config.read(prepare(home, typed).environ["MLFLOW_AUTH_CONFIG_PATH"])
    assert config["mlflow"]["database_uri"] == f"sqlite:///{home / 'ui' / 'users.db'}"
    assert config["mlflow"]["default_permission"] == "READ"
    assert "admin_password" not in config["mlflow"]


def test_a_given_password_is_taken_and_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(tmp_path / "a", typed).environ[PASSWORD] == GIVEN
    monkeypatch.setenv("CARFT_UI_PASSWORD", GIVEN[::-1])
    named = prepare(tmp_path / "b", typed)
    assert named.environ[PASSWORD] == GIVEN[::-1]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or GIVEN[:9] not in path.read_text() + path.read_text()[::-1]
    monkeypatch.setenv("CARFT_UI_PASSWORD", "short")
    with pytest.raises(TrackingError, match="12 characters or more"):
        prepare(tmp_path / "c", typed)
    monkeypatch.delenv("CARFT_UI_PASSWORD")
    with pytest.raises(TrackingError, match="12 characters or more: in CARFT_UI_PASSWORD"):
        prepare(tmp_path / "c", lambda: None)
    assert not (tmp_path / "c" / "ui" / "users.db").exists()


def test_where_there_is_an_administrator_no_password_is_asked_for(tmp_path: Path) -> None:
    prepare(tmp_path, typed)
    database = tmp_path / "ui" / "users.db"
    begun(database)

    def asked() -> str:
        raise AssertionError("asked")

    later = prepare(tmp_path, asked)
    assert PASSWORD not in later.environ
    assert str(database) in later.note


def test_a_missing_package_is_named_before_a_server_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carft_sweep.tracking.ui_server.find_spec", lambda _: None)
    with pytest.raises(TrackingError, match=r'pip install "carft-sweep\[server\]"'):
        prepare(tmp_path, typed)
    assert list(tmp_path.iterdir()) == []


def test_where_sqlite_would_lose_users_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    mount(monkeypatch, home, "nfs4")
    with pytest.raises(TrackingError, match=r"network file system \(nfs4\).*a local disk"):
        prepare(home, typed)
    assert list(home.iterdir()) == []


def test_a_link_in_the_place_of_the_configuration_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("a file of somebody's")
    (tmp_path / "ui").mkdir()
    (tmp_path / "ui" / "basic_auth.ini").symlink_to(elsewhere)
    with pytest.raises(OSError, match="is a link, which is not followed"):
        prepare(tmp_path, typed)
    assert elsewhere.read_text() == "a file of somebody's"


def test_another_file_in_the_place_of_users_is_told(tmp_path: Path) -> None:
    (tmp_path / "ui").mkdir()
    (tmp_path / "ui" / "users.db").write_text("something else, longer than a header" * 9)
    with pytest.raises(TrackingError, match="is not an SQLite database"):
        prepare(tmp_path, typed)
