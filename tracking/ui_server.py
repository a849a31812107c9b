"""The MLflow server that shows a home's runs, reachable from this machine alone."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import (
    UI_HOST,
    UI_PORT,
    is_server,
    sqlite_file,
    stay_private,
    waiting,
    without_password,
)
from carft_sweep.tracking.ownership import is_shared
from carft_sweep.tracking.store.mlflow_client import check_reachable

logger = logging.getLogger(__name__)

# By MLflow's own choice the names of private networks are accepted too.
_HOSTS = "localhost,localhost:*,127.0.0.1,127.0.0.1:*"
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
        """Wait until the server ends or this process gets SIGINT or SIGTERM; then stop it. Raises
        KeyboardInterrupt or SystemExit(143) after the server was stopped."""
        try:
            if self.process is not None:
                self.process.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop the server with all its child processes, if this process started it."""
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
    uri: str, artifacts: Path | None, *, port: int = UI_PORT, start_seconds: float = 600.0
) -> Server:
    """Start a server that shows the runs at `uri`, wait until it answers, and return it.

    Until `Server.stop`, SIGTERM raises SystemExit here, so that the server does not stay behind.

    Args:
        uri: The database; or the address of a server, which is then returned and none is started.
        artifacts: The folder of artifacts that the server serves; None: MLflow's own choice.
        port: The port to listen on; 0 for any.
        start_seconds: How long it may take to answer.

    Raises:
        TrackingError: The port is taken, or the server ended at once.
        ServiceUnreachable: The server does not answer in time.
    """
    if is_server(uri):
        return Server(without_password(uri))
    check_reachable(uri)
    port = _free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "carft"]  # see ui_app.py
    command += ["--host", UI_HOST, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", _HOSTS]
    command += [] if artifacts is None else ["--artifacts-destination", str(artifacts)]
    shared = artifacts is not None and is_shared(artifacts.parent)
    address = f"http://{UI_HOST}:{port}"
    logger.debug("starting MLflow's server at %s", address)
    log = tempfile.TemporaryFile()  # noqa: SIM115 - the server writes it as long as it lives
    sigterm = None
    if threading.current_thread() is threading.main_thread():
        sigterm = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=_environment(uri),
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


def _environment(uri: str) -> dict[str, str]:
    environ = dict(os.environ)
    # Not on the command line, which everybody on the machine may read: it may hold a password.
    environ["MLFLOW_BACKEND_STORE_URI"] = uri
    stay_private(environ)
    # Eight more processes for routes that are closed; they do not end with the server.
    environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    # The server must show this home whatever the environment calls its own, to its own pages.
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"):
        environ.pop(name, None)
    return environ


def _free_port(port: int) -> int:
    """Return a free port (0: any) after binding to it. Raises TrackingError if it is taken."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((UI_HOST, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise TrackingError(
            f"port {port} is taken on {UI_HOST} ({error.strerror}): name another one with --port"
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
    """Return the end of the server's log, without the frames of tracebacks."""
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
