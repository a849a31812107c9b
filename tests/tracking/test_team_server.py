"""MLflow's server for a team: users, names, and the nginx of the docs before it."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from mlflow import MlflowClient

from carft_sweep.sweeps.cli import main
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.store.base import RunKey, RunStart
from carft_sweep.tracking.store.mlflow_client import get
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from tests.e2e.browser import IS_THERE, WHY_NOT, browser, show
from tests.services.processes import end, environment, free_port, start
from tests.tracking.mlflow_routes import METHODS, Route, answers, closed_paths

NAME, FOREIGN = "mlflow.lab.example", "elsewhere.example"
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text()
EXPERIMENT = "/api/2.0/mlflow/experiments/get?experiment_id=0"
SEARCH = "/api/2.0/mlflow/experiments/search"
CLIENT = [f"MLFLOW_TRACKING_{name}" for name in ("URI", "SERVER_CERT_PATH", "USERNAME", "PASSWORD")]
ADMIN, ADA, HERS, HIS = "admin", "ada", "a password of hers", "the administrator's own"
AS_ADMIN = (ADMIN, HIS)

pytestmark = [
    pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx"),
    pytest.mark.xdist_group("ui"),
]


@pytest.fixture(scope="module", autouse=True)
def names() -> Iterator[None]:
    """This process finds both names on this machine."""
    asked = socket.getaddrinfo

    def lookup(host: Any, *rest: Any, **more: Any) -> Any:
        return asked("127.0.0.1" if host in (NAME, FOREIGN) else host, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lookup)
        yield


@pytest.fixture(scope="module")
def secure() -> int:
    """The proxy's port, which is not that of https: people open its pages with it."""
    return free_port()


@pytest.fixture(scope="module")
def team(migrated: Path, secure: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's server with users on a home, as the page starts it."""
    folder, port = tmp_path_factory.mktemp("team"), free_port()
    shutil.copy(migrated, folder / "mlflow.db")
    (config,) = re.findall(r"^```ini\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    users = f"sqlite:///{folder / 'users.db'}"
    file = folder / "basic_auth.ini"
    file.write_text(re.sub("database_uri = .*", f"database_uri = {users}", config))
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "carft-auth"]
    command += ["--artifacts-destination", str(folder / "mlartifacts"), "--port", str(port)]
    hosts = f"{NAME},{NAME}:{secure},127.0.0.1:{port}"
    command += ["--host", "127.0.0.1", "--allowed-hosts", hosts, "--workers", "1"]
    command += ["--cors-allowed-origins", f"https://{NAME}:{secure}"]
    address = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return requests.get(f"{address}/health", timeout=2).ok
        except requests.RequestException:
            return False

    environ = environment(
        MLFLOW_AUTH_CONFIG_PATH=str(file),
        MLFLOW_AUTH_ADMIN_PASSWORD=HIS,
        MLFLOW_FLASK_SERVER_SECRET_KEY="of no use elsewhere",
        MLFLOW_BACKEND_STORE_URI=f"sqlite:///{folder / 'mlflow.db'}",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    process = start(command, folder / "mlflow.log", is_up, environ=environ, folder=folder)
    yield address
    end(process)


class Proxy:
    """The nginx of the docs, on ports of its own, with a certificate made for it."""

    def __init__(self, folder: Path, server: str, secure: int) -> None:
        self.certificate = folder / "fullchain.pem"
        self.log = folder / "error.log"
        self.plain, self.secure = free_port(), secure
        self.address = f"https://{NAME}:{self.secure}"
        key = folder / "privkey.pem"
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
        named = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
        files = ["-keyout", str(key), "-out", str(self.certificate)]
        subprocess.run([*make.split(), *named, *files], check=True, capture_output=True)
        shown = (ROOT / "docs" / "clusters" / "nginx.conf").read_text()
        for published, own in {
            "listen 80;": f"listen 127.0.0.1:{self.plain};",
            "listen 443": f"listen 127.0.0.1:{self.secure}",
            "https://$host$request_uri": f"https://$host:{self.secure}$request_uri",
            "/etc/ssl/mlflow/fullchain.pem": str(self.certificate),
            "/etc/ssl/mlflow/privkey.pem": str(key),
            "http://127.0.0.1:5000": f"http://{urlsplit(server).netloc}",
        }.items():
            assert published in shown
            shown = shown.replace(published, own)
        # What a distribution's own nginx.conf has around it; as root its workers are others.
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
        user = "user root;\n" if os.getuid() == 0 else ""
        config = folder / "nginx.conf"
        config.write_text(
            f"{user}daemon off;\npid {folder / 'pid'};\nerror_log {self.log} warn;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{shown}}}\n"
        )
        command = ["nginx", "-p", str(folder), "-c", str(config)]
        self.process = start(command, folder / "output", self._answers)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.secure), 1).close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def proxy(team: str, secure: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Before the team's server."""
    made = Proxy(tmp_path_factory.mktemp("nginx"), team, secure)
    yield made
    end(made.process)


@pytest.fixture
def client(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow's client behind the proxy, as the administrator, from the environment."""
    known = (proxy.address, str(proxy.certificate), ADMIN, HIS)
    for name, value in zip(CLIENT, known, strict=True):
        monkeypatch.setenv(name, value)
    return MlflowClient(proxy.address)


def status(proxy: Proxy, path: str = EXPERIMENT, method: str = "GET", **how: Any) -> int:
    """Of an answer through the proxy."""
    url, certificate = f"{proxy.address}{path}", str(proxy.certificate)
    return requests.request(method, url, verify=certificate, **how).status_code


def test_what_is_told_and_kept_goes_through_whole_and_touches_no_other_disk(
    proxy: Proxy, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MlflowStore(proxy.address, "through nginx")
    key = RunKey("kl_weight")
    store.start_run(RunStart(key, "kl_weight", 1))
    large = tmp_path / "checkpoint.bin"
    large.write_bytes(os.urandom(3_000_000))  # nginx itself lets 1 MB pass, and buffers 16 kB
    store.log_artifact(key, large)
    (tmp_path / "back").mkdir()
    run_id = str(store.run_id(key))
    back = client.download_artifacts(run_id, large.name, str(tmp_path / "back"))
    assert Path(back).read_bytes() == large.read_bytes()
    assert "buffered to a temporary file" not in proxy.log.read_text()
    # A certificate that nobody knows is said with its variable.
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    with pytest.raises(TrackingError, match=r"TLS with .* MLFLOW_TRACKING_SERVER_CERT_PATH names"):
        get(proxy.address, "/health")


def test_strangers_are_refused(proxy: Proxy, team: str) -> None:
    assert status(proxy, auth=AS_ADMIN) == 200
    assert status(proxy) == status(proxy, auth=(ADMIN, "a wrong password")) == 401
    origin = f"https://{NAME}:{proxy.secure}"
    for page, answer in {origin: 200, f"https://{FOREIGN}": 403}.items():
        own = {"headers": {"Origin": page}, "json": {"max_results": 1}}
        assert status(proxy, SEARCH, "POST", auth=AS_ADMIN, **own) == answer
    foreign = {"Host": FOREIGN}
    with pytest.raises(requests.ConnectionError):  # nginx hangs up
        status(proxy, headers=foreign, auth=AS_ADMIN)
    straight = requests.get(f"{team}{EXPERIMENT}", headers=foreign, auth=AS_ADMIN, timeout=10)
    assert (straight.status_code, straight.text[:19]) == (403, "Invalid Host header")
    plain = requests.get(f"http://{NAME}:{proxy.plain}/x?y=1", allow_redirects=False, timeout=10)
    assert (plain.status_code, plain.headers["Location"]) == (301, f"{origin}/x?y=1")


def test_what_runs_do_not_need_is_closed_to_the_administrator_too(
    proxy: Proxy, team: str, routes: frozenset[Route]
) -> None:
    paths = closed_paths(routes)
    pair = base64.b64encode(f"{ADMIN}:{HIS}".encode()).decode()
    statuses = answers(team, paths, {"Authorization": f"Basic {pair}"})
    assert {route: status for route, status in statuses.items() if status != 404} == {}
    for path in sorted(path.replace("{}", "x") for path in paths if "/assistant/" in path):
        for method in METHODS:
            assert status(proxy, path, method=method, auth=AS_ADMIN) == 404, path
            assert status(proxy, path, method=method) == 404, path


def test_a_user_reads_all_and_writes_where_she_is_let(
    client: MlflowClient,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def as_admin(path: str, **body: str) -> None:
        assert status(proxy, path, "POST", auth=AS_ADMIN, json=body) == 200

    as_admin("/api/2.0/mlflow/users/create", username=ADA, password=HERS)
    experiment = client.create_experiment("ours")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADA)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", HERS)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    doctor = ["--home", str(tmp_path), "doctor", "mlflow"]
    assert main(doctor) != 0
    output = capsys.readouterr().out
    assert "the server accepts us, and has the experiment ours" in output
    assert HERS not in output
    edit = {"resource_type": "experiment", "resource_id": experiment, "permission": "EDIT"}
    as_admin("/api/3.0/mlflow/users/permissions/grant", username=ADA, **edit)
    assert main(doctor) == 0
    output = capsys.readouterr().out
    assert f"a small file went to mlflow-artifacts:/{experiment} and back" in output
    assert "stays, since this user may not delete there" in output


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")
def test_users_are_added_as_the_page_says(client: MlflowClient, proxy: Proxy) -> None:
    shown = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    hers = client.create_experiment("as the page says")
    shown = shown.replace(f'"{ADA}"', '"grace"')
    exec(compile(shown, "server.md", "exec"), {"experiment_id": hers})
    grace = ("grace", HERS)
    body = {"experiment_id": hers, "key": "a", "value": "b"}
    path = "/api/2.0/mlflow/experiments/set-experiment-tag"
    assert status(proxy, path, "POST", json=body, auth=grace) == 200
    body["experiment_id"] = "0"
    assert status(proxy, path, "POST", json=body, auth=grace) == 403


@pytest.mark.skipif(not IS_THERE, reason=WHY_NOT)
def test_a_browser_shows_the_pages_behind_it(proxy: Proxy) -> None:
    place = f"{NAME}:{proxy.secure}"
    switches = (f"host-resolver-rules=MAP {NAME} 127.0.0.1", "ignore-certificate-errors")
    with browser(*switches) as driver:
        driver.implicitly_wait(30)
        # As somebody who types it; a page whose own address has a password may fetch nothing.
        driver.get(f"https://{ADMIN}:{quote(HIS)}@{place}/version")
        show(driver, f"https://{place}/#/experiments", width=1200)
        driver.find_element("link text", "Default")
        errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    closed = ("/mlflow/assistant/", "/ui-telemetry", "/favicon.ico")  # pages do without
    messages = [entry["message"] for entry in errors if NAME in entry["message"]]
    assert not [message for message in messages if not any(part in message for part in closed)]
