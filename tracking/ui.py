"""MLflow's server on a home, started for as long as somebody looks at it."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from tracking.base import ServiceUnreachable, TrackingError
from tracking.locks import waiting
from tracking.privacy import stay_private
from tracking.reachable import check_reachable, sqlite_file
from tracking.ui_hosts import allowed_hosts, allowed_origins
from tracking.ui_users import Users
from tracking.where import is_server

_PORTS_TRIED = 20
_START_SECONDS = 120.0
# Requests are answered by then; what takes longer is an interpreter tidying up.
_STOP_SECONDS = 2.0
_TOKEN = "X-Carft-Sweep-Server"


@dataclass
class Server:
    """A server that answers at `address`; `process` is None when it is not ours."""

    address: str
    process: subprocess.Popen[bytes] | None = None
    _log: IO[bytes] | None = field(default=None, repr=False)
    _sigterm: Any = field(default=None, repr=False)

    def wait(self) -> None:
        """Until the server ends or this process gets SIGINT or SIGTERM; then stop it.

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
    host: str = "127.0.0.1",
    port: int = 5000,
    other_ports: bool = True,
    names: Sequence[str] = (),
    users: Users | None = None,
    prefix: str = "",
    start_seconds: float = _START_SECONDS,
) -> Server:
    """Show the runs at `uri`: start a server on `host` at `port` (0: any) or, with
    `other_ports`, the next free one.

    It answers as this machine, as `host` and as `names`, asks `users` for their passwords, and has
    its pages below the path `prefix` (`/mlflow`).
    A `uri` that is a server's address already is returned as it is. Raises TrackingError when no
    port is free or the server ends at once, ServiceUnreachable when it does not answer in time.
    Until `Server.stop`, SIGTERM raises SystemExit here, so that the server does not stay behind.
    """
    if is_server(uri):
        return Server(uri)
    check_reachable(uri)
    hosts = allowed_hosts(host, names)
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", host, "--workers", "1"]
    command += ["--allowed-hosts", ",".join(hosts)]
    command += ["--cors-allowed-origins", ",".join(allowed_origins(hosts))]
    command += [] if artifacts is None else ["--artifacts-destination", str(artifacts)]
    command += [] if users is None else ["--app-name", "basic-auth"]
    command += ["--static-prefix", prefix] if prefix else []
    asked = _Asked(command, _environment(uri, users), host, prefix, sqlite_file(uri))
    last = min(port + _PORTS_TRIED - 1, 65535) if other_ports else port
    tried = port
    while True:
        free = _free_port(host, tried, last)
        try:
            return _start(asked, free, start_seconds)
        except _PortTaken:  # since it was looked at
            tried = free + 1 if port and other_ports else port


class _PortTaken(Exception):
    """Somebody else was quicker to take the port."""


class _Asked(NamedTuple):
    """A server to start, at whatever port; `database` is the SQLite file that it opens."""

    command: Sequence[str]
    environ: Mapping[str, str]
    host: str
    prefix: str
    database: Path | None

    def address(self, port: int) -> str:
        """Under which this machine reaches it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://{_bracketed(host)}:{port}{self.prefix}"


def _start(asked: _Asked, port: int, seconds: float) -> Server:
    """Raises _PortTaken, and as `serve` does."""
    token = uuid.uuid4().hex  # tells our server's answers from those of another one at the port
    log = tempfile.TemporaryFile()  # noqa: SIM115 - the server writes it as long as it lives
    sigterm = None
    if threading.current_thread() is threading.main_thread():
        sigterm = signal.signal(signal.SIGTERM, _leave)
    process = subprocess.Popen(
        [*asked.command, "--port", str(port), "--uvicorn-opts", f"--header {_TOKEN}:{token}"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=asked.environ,
        start_new_session=True,  # so that it and its children can be ended together
    )
    server = Server(asked.address(port), process, log, sigterm)
    # A signal may come before the caller waits; the server must not outlive that either.
    atexit.register(server.stop)
    try:
        with ExitStack() as meanwhile:
            database = asked.database
            if database is not None:  # a driver must not create the tables at the same time
                lock = database.with_name(f"{database.name}.lock")
                meanwhile.enter_context(waiting(lock))
            _wait_until_healthy(
                server, token, seconds, taken=lambda: not _is_free(asked.host, port)
            )
    except BaseException:
        server.stop()
        raise
    return server


def _environment(uri: str, users: Users | None) -> dict[str, str]:
    environ = {**os.environ, **({} if users is None else users.environ)}
    # Not on the command line, which everybody on the machine may read: it may hold a password.
    environ["MLFLOW_BACKEND_STORE_URI"] = uri
    stay_private(environ)
    # Eight more processes for features that a home does not use; they do not end with the server.
    environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    # The server must show this home whatever the environment calls its own.
    environ.pop("MLFLOW_TRACKING_URI", None)
    return environ


def _free_port(host: str, first: int, last: int) -> int:
    """The first free one; another one than `first` when that is 0, any."""
    for port in range(first, last + 1):
        if _is_free(host, port):
            return port or _any_port(host)
    taken = f"no port from {first} to {last} is free" if last > first else f"port {first} is taken"
    raise TrackingError(f"{taken} on {host}: name another one with --port")


def _is_free(host: str, port: int) -> bool:
    try:
        with _bound(host, port):
            return True
    except socket.gaierror as error:
        raise TrackingError(f"unknown host {host!r}: {error}") from None
    except OSError:
        return False


def _any_port(host: str) -> int:
    with _bound(host, 0) as probe:
        port: int = probe.getsockname()[1]
    return port


def _bound(host: str, port: int) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
    except BaseException:
        probe.close()
        raise
    return probe


def _wait_until_healthy(
    server: Server, token: str, seconds: float, *, taken: Callable[[], bool]
) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.process is not None and server.process.poll() is not None:
            if taken():
                raise _PortTaken
            raise TrackingError(f"MLflow's server ended at once:\n{_end_of(server)}")
        try:
            with urllib.request.urlopen(f"{server.address}/health", timeout=2) as answer:
                if answer.headers.get(_TOKEN) != token:
                    raise _PortTaken
                return
        except urllib.error.HTTPError as error:
            if error.headers.get(_TOKEN) != token:
                raise _PortTaken from None
            time.sleep(0.1)
        except (urllib.error.URLError, OSError, http.client.HTTPException):
            time.sleep(0.1)
    place = urlsplit(server.address).netloc
    raise ServiceUnreachable(
        f"MLflow's server at {place} does not answer after {seconds:.0f} s:\n{_end_of(server)}"
    )


def _end_of(server: Server, characters: int = 2000) -> str:
    if server._log is None:
        return ""
    server._log.seek(0)
    text = server._log.read().decode(errors="replace")[-characters:].strip()
    return re.sub(r"://[^/@\s]+@", "://", text)  # without the passwords of addresses


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # Nobody may be left, or on macOS only zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
    raise SystemExit(128 + number)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
