"""The MLflow server of a home: hosts, ports, users."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import ipaddress
import logging
import os
import re
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO, Any
from urllib.parse import urlsplit

from carft_sweep.regular_files import open_regular
from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import (
    UI_HOST,
    UI_PORT,
    is_server,
    network_file_system,
    sqlite_file,
    stay_private,
    waiting,
    without_password,
)
from carft_sweep.tracking.ownership import is_shared
from carft_sweep.tracking.store.mlflow_client import check_reachable

logger = logging.getLogger(__name__)

_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_ALL = ("0.0.0.0", "::", "")
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*(:\d+)?")
_PORT = re.compile(r"[^:]:\d+$|\]:\d+$")


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, or an empty text, which stands for every address


def check_name(name: str) -> None:
    """Raise ValueError unless it is a host's name or IPv4 address, with or without a port."""
    if "*" in name:
        raise ValueError(
            f"{name!r} would let pages of other hosts read and change runs: name each host"
        )
    if name.startswith("["):
        raise ValueError(
            f"{name!r} is an IPv6 address, under which MLflow's pages do not open: give it a name"
        )
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no host: lab, mlflow.lab.example or 10.0.0.7:5000 are")


def allowed_hosts(host: str, names: Sequence[str]) -> list[str]:
    """List the names that `mlflow server --allowed-hosts` is to accept.

    They are this machine's own, `host` and `names`, those without a port with any.
    """
    hosts = dict.fromkeys((*_LOCAL, *_own_names(host), *names))
    return [pattern for name in hosts for pattern in _patterns(name)]


def allowed_origins(host: str, names: Sequence[str], port: int) -> list[str]:
    """List the pages that may send it requests, besides those of localhost, which MLflow lets in.

    A name without a port stands for `port` and for the ports of a proxy, 80 and 443. Each is exact:
    flask_cors takes a text with a star or a bracket for a regular expression that is not anchored,
    and would let pages of other hosts read every run.
    """
    hosts = dict.fromkeys(name for name in (*_own_names(host), *names) if _NAME.fullmatch(name))
    origins: dict[str, None] = {}
    for name in (name for name in hosts if name not in _LOCAL):
        origins |= dict.fromkeys((f"http://{name}", f"https://{name}"))
        if not _PORT.search(name):
            origins[f"http://{name}:{port}"] = None
    return [*origins]


def _own_names(host: str) -> list[str]:
    return [socket.gethostname(), socket.getfqdn()] if host in _ALL else [bracketed(host)]


def _patterns(name: str) -> Iterator[str]:
    """Escape brackets: MLflow compares by fnmatch where there is a star."""
    yield name
    if not _PORT.search(name):
        yield f"{name.replace('[', '[[]', 1)}:*"


def bracketed(host: str) -> str:
    """Write an IPv6 address in brackets, as URLs have it."""
    return f"[{host}]" if ":" in host else host


ADMIN = "admin"
SHORTEST = 12
"""Characters of a password, as MLflow wants them."""
VARIABLE = "CARFT_UI_PASSWORD"
# To look at a password costs a tenth of a second of a core, on purpose, and every request of a
# sweep brings one. What is remembered is forgotten at once when a password is changed: the server
# has one worker.
_CONFIG = """[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True)
class Users:
    """The users of a server: how it is started with them."""

    environ: dict[str, str]
    """With the password of the administrator when there is none yet."""
    note: str
    """Who has access."""


def prepare(home: Path, ask_password: Callable[[], str | None]) -> Users:
    """Prepare the users of a home, with an administrator when there are none.

    The administrator's first password is that of CARFT_UI_PASSWORD, else what `ask_password`
    returns. Raises TrackingError for one that is missing or too short, where users cannot be kept
    safely, or a package is missing.
    """
    if find_spec("flask_wtf") is None:
        raise TrackingError(
            'users need packages that are not installed here: pip install "carft-sweep[server]" '
            "brings them"
        )
    kind = network_file_system(home)
    if kind is not None:
        raise TrackingError(
            f"--auth keeps users in an SQLite database in {home / 'ui'}, which lies on a network "
            f"file system ({kind}), where SQLite loses data; name a home on a local disk with "
            "--home, or start MLflow's own server"
        )
    # It signs the page for new users, of this server alone.
    key = os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32)
    folder = home / "ui"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    database, config = folder / "users.db", folder / "basic_auth.ini"
    uri = f"sqlite:///{database.resolve()}".replace("%", "%%")  # configparser's own sign
    with os.fdopen(open_regular(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as writer:
        os.fchmod(writer.fileno(), 0o600)
        writer.write(_CONFIG.format(database=uri, admin=ADMIN))
    environ = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
        "MLFLOW_AUTH_CONFIG_PATH": str(config.resolve()),
    }
    if _has_admin(database):
        return Users(environ, f"It asks for a name and a password; its users are in {database}.")
    password = os.environ.get(VARIABLE) or ask_password()
    if password is None or len(password) < SHORTEST:
        raise TrackingError(
            f"the first user, {ADMIN}, needs a password of {SHORTEST} characters or more: in "
            f"{VARIABLE}, in a file that {VARIABLE}_FILE names, or typed on a terminal"
        )
    database.touch(0o600)
    environ["MLFLOW_AUTH_ADMIN_PASSWORD"] = password
    return Users(environ, f"Its first user is {ADMIN}, with the password that you gave.")


def _has_admin(database: Path) -> bool:
    """Tell whether MLflow has an administrator there already, whose password then stands."""
    if not database.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(database)) as users:
            return bool(users.execute("SELECT 1 FROM users WHERE is_admin").fetchone())
    except sqlite3.OperationalError:  # no tables yet
        return False
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"{database} is not an SQLite database ({error}): move it away"
        ) from None


_START_SECONDS = 120.0
# Requests are answered by then; what takes longer is an interpreter tidying up.
_STOP_SECONDS = 2.0


@dataclass
class Server:
    """A server that answers at `address`; `process` is None when it is not ours."""

    address: str
    process: subprocess.Popen[bytes] | None = None
    _log: IO[bytes] | None = field(default=None, repr=False)
    _sigterm: Any = field(default=None, repr=False)

    def wait(self) -> None:
        """Wait until the server ends or this process gets SIGINT or SIGTERM; then stop it.

        Raises KeyboardInterrupt or SystemExit(143) after the server was stopped.
        """
        try:
            if self.process is not None:
                self.process.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        """End our server together with all its children."""
        if self.process is None:
            return
        atexit.unregister(self.stop)
        _signal_group(self.process, signal.SIGTERM)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # then the hard way
        finally:
            # Children may outlive the first process, or not listen to SIGTERM at all.
            _signal_group(self.process, signal.SIGKILL)
            self.process.wait()
            if self._log is not None:
                self._log.close()
            if self._sigterm is not None:
                signal.signal(signal.SIGTERM, self._sigterm)
                self._sigterm = None


def serve(
    uri: str,
    artifacts: Path | None,
    *,
    host: str = UI_HOST,
    port: int = UI_PORT,
    names: Sequence[str] = (),
    users: Users | None = None,
    prefix: str = "",
    start_seconds: float = _START_SECONDS,
) -> Server:
    """Start a server that shows the runs at `uri`, and wait until it answers.

    Until `Server.stop`, SIGTERM raises SystemExit here, so that the server does not stay behind.

    Args:
        uri: The database; a server's address is returned without its password.
        artifacts: The folder of artifacts, where the server serves them.
        host: The address to listen on.
        port: The port to listen on; 0 for any.
        names: Further names under which it answers, besides this machine's and `host`.
        users: Whose passwords it checks; None: nobody's.
        prefix: The path below which it has its pages, such as `/mlflow`.
        start_seconds: How long it may take to answer.

    Raises:
        TrackingError: The port is taken, or the server ended at once.
        ServiceUnreachable: The server does not answer in time.
    """
    if is_server(uri):
        return Server(without_password(uri))
    check_reachable(uri)
    port = _free_port(host, port)
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", ",".join(allowed_hosts(host, names))]
    origins = allowed_origins(host, names, port)
    command += ["--cors-allowed-origins", ",".join(origins)] if origins else []
    command += [] if artifacts is None else ["--artifacts-destination", str(artifacts)]
    command += ["--app-name", "carft" if users is None else "carft-auth"]  # see ui_app.py
    command += ["--static-prefix", prefix] if prefix else []
    shared = artifacts is not None and is_shared(artifacts.parent)
    reached = "127.0.0.1" if host in _ALL else host
    address = f"http://{bracketed(reached)}:{port}{prefix}"
    logger.debug("starting MLflow's server at %s", address)
    log = tempfile.TemporaryFile()  # noqa: SIM115 - the server writes it as long as it lives
    sigterm = None
    if threading.current_thread() is threading.main_thread():
        sigterm = signal.signal(signal.SIGTERM, _leave)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=_environment(uri, users),
        start_new_session=True,  # so that it and its children can be ended together
        umask=-1 if shared else 0o077,  # it makes the database and files of runs
    )
    server = Server(address, process, log, sigterm)
    # A signal may come before the caller waits; the server must not outlive that either.
    atexit.register(server.stop)
    file = sqlite_file(uri)
    try:
        with ExitStack() as meanwhile:
            if file is not None:  # a driver must not create the tables at the same time
                meanwhile.enter_context(waiting(file.with_name(f"{file.name}.lock")))
            _wait_until_healthy(server, process, start_seconds)
    except BaseException:
        server.stop()
        raise
    return server


def _environment(uri: str, users: Users | None) -> dict[str, str]:
    environ = {**os.environ, **({} if users is None else users.environ)}
    # Not on the command line, which everybody on the machine may read: it may hold a password.
    environ["MLFLOW_BACKEND_STORE_URI"] = uri
    stay_private(environ)
    # Eight more processes for routes that are closed; they do not end with the server.
    environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    # The server must show this home whatever the environment calls its own, to its own pages.
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"):
        environ.pop(name, None)
    return environ


def _free_port(host: str, port: int) -> int:
    """Bind to a port for a moment; 0 stands for any. Raises TrackingError where it is taken."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise TrackingError(f"unknown host {host!r}: {error}") from None
    except OSError as error:
        raise TrackingError(
            f"port {port} is taken on {host} ({error.strerror}): name another one with --port"
        ) from None


def _wait_until_healthy(server: Server, process: subprocess.Popen[bytes], seconds: float) -> None:
    until = time.monotonic() + seconds
    # A proxy of the environment does not reach this machine's own address.
    straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < until:
        if process.poll() is not None:
            raise TrackingError(f"MLflow's server ended at once:\n{_end_of(server)}")
        # Whatever it says of a server that is not up yet, the request is repeated.
        with contextlib.suppress(OSError, http.client.HTTPException):
            straight.open(f"{server.address}/health", timeout=2).close()
            return
        time.sleep(0.1)
    place = urlsplit(server.address).netloc
    raise ServiceUnreachable(
        f"MLflow's server at {place} does not answer after {seconds:.0f} s:\n{_end_of(server)}"
    )


def _end_of(server: Server, characters: int = 2000) -> str:
    """Read the end of the server's log, without the frames of tracebacks."""
    if server._log is None:
        return ""
    server._log.seek(0)
    lines = server._log.read().decode(errors="replace").splitlines()
    messages = [line for line in lines if not line.startswith((" ", "Traceback "))]
    text = "\n".join(messages)[-characters:].strip()
    return re.sub(r"://[^/@\s]+@", "://", text)  # without the passwords of addresses


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # Nobody may be left, or on macOS only zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
    raise SystemExit(128 + number)
