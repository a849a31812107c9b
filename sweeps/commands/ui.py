"""`carft-sweep ui`: MLflow's server on this home, until Ctrl-C."""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from collections.abc import Callable

from carft_core.errors import RequestError
from sweeps.home import Home, find_home
from tracking.ui import serve
from tracking.ui_hosts import is_loopback
from tracking.ui_users import ADMIN, Users, prepare
from tracking.where import is_server, where

Say = Callable[[str], None]
PORT = 5000


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError where strangers would be let in unasked."""
    home = find_home(arguments.home)
    place = where(home.path)
    if not is_server(place.named) and not home.path.exists():
        raise RequestError(f"there is no home {home.path} yet; run a sweep first, or name --home")
    _check(arguments)
    users = _users(home, arguments, served=not is_server(place.named))
    server = serve(
        place.uri,
        place.artifacts,
        host=arguments.host,
        port=PORT if arguments.port is None else arguments.port,
        other_ports=arguments.port is None,
        names=arguments.allowed_hosts,
        users=users,
        prefix=arguments.static_prefix or "",
    )
    say(f"MLflow shows experiment {place.experiment} at {server.address}")
    if server.process is None:
        return 0
    if users is not None:
        say(users.told)
    if arguments.no_auth and not is_loopback(arguments.host):
        say(f"Whoever reaches {arguments.host} may read, change and delete every run.")
    say("Ctrl-C ends it.")
    try:
        server.wait()
    except KeyboardInterrupt:
        return 0
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not (is_loopback(arguments.host) or arguments.auth or arguments.no_auth):
        raise RequestError(
            f"--host {arguments.host} lets everybody who reaches this machine read, change and "
            "delete every run: add --auth, which asks for a password, or --no-auth where only "
            "people you trust reach it"
        )
    prefix = arguments.static_prefix
    if prefix is not None and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
        raise RequestError(
            f"--static-prefix must be a path such as /mlflow, without a slash at its end; "
            f"got {prefix!r}"
        )


def _users(home: Home, arguments: argparse.Namespace, *, served: bool) -> Users | None:
    return prepare(home.path, _password) if arguments.auth and served else None


def _password() -> str | None:
    """Of the first user, typed twice; None where nobody sits before a terminal."""
    if not sys.stdin.isatty():
        return None
    first = getpass.getpass(f"A password for {ADMIN}, the first user (none: one is made up): ")
    if first and getpass.getpass("Again: ") != first:
        raise RequestError("the two passwords differ")
    return first or None
