"""`carft-sweep ui`: start MLflow's server on a home."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import sys
from collections.abc import Iterator

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.requirements import refuse_outdated
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.status import summaries
from carft_sweep.sweeps.results.artifacts import PAGE
from carft_sweep.sweeps.results.sent_log import SentLog
from carft_sweep.tracking.location import (
    TrackingLocation,
    is_server,
    resolve_location,
    without_password,
)
from carft_sweep.tracking.store.base import ARM
from carft_sweep.tracking.store.mlflow_client import experiment_id, refuse_if_moved
from carft_sweep.tracking.store.mlflow_pages import SWEEPS, run_page, runs_page
from carft_sweep.tracking.ui_server import ADMIN, is_loopback, prepare, serve

LINKED_SWEEPS = 5
"""The newest ones, to whose pages `ui` leads."""


def ui_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the command. Raises RequestError where strangers would be let in unasked."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    place = resolve_location(home.path)
    if is_server(place.named):
        _check_only_named(arguments, without_password(place.named))
    elif not home.path.exists():
        raise RequestError(f"there is no home {home.path} yet; run a sweep first, or name --home")
    else:
        refuse_outdated("mlflow", "ui lets browsers reach MLflow's server")
    _check(arguments)
    refuse_if_moved(place)
    users = prepare(home.path, _password) if arguments.auth else None
    server = serve(
        place.uri,
        place.artifacts,
        host=arguments.host,
        port=arguments.port,
        names=arguments.allowed_hosts,
        users=users,
        prefix=arguments.static_prefix or "",
    )
    for line in _pages(home, place, server.address):
        emit(line)
    if server.process is None:
        return 0
    if os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true").lower() in ("true", "1"):
        emit("MLflow's banner about usage data does not apply: this server sends none.")
    if users is not None:
        emit(users.note)
    if arguments.no_auth and not is_loopback(arguments.host):
        emit(f"Whoever reaches {arguments.host} may read, change and delete every run.")
    if users is None and not arguments.no_auth:
        emit(
            "Every account of this machine may read, change and delete every run here: --auth "
            "requires a password; --no-auth lets them in without this line."
        )
    emit("Ctrl-C ends it.")
    try:
        server.wait()
    except KeyboardInterrupt:
        return 0
    return 0


def _pages(home: Home, place: TrackingLocation, address: str) -> Iterator[str]:
    """Yield where MLflow has the runs of the home, and each of its newest sweeps."""
    experiment = experiment_id(place.uri, place.experiment)
    if experiment is None:
        yield f"MLflow shows experiment {place.experiment} at {address}"
        return
    every = sorted(summaries(home), key=lambda summary: summary["updated"], reverse=True)
    ids_of = {it["name"]: SentLog(home.sweep(it["name"]), place).run_ids() for it in every}
    newest = [(name, ids) for name, ids in ids_of.items() if ids.get("")][:LINKED_SWEEPS]
    runs = runs_page(experiment, SWEEPS if newest else "")
    yield f"MLflow shows experiment {place.experiment} at {address}/{runs}"
    for name, ids in newest:
        run_id = ids[""]
        yield name
        if any(run.startswith(ARM) and id_ for run, id_ in ids.items()):
            yield f"  arms    {address}/{runs_page(experiment, run_id)}"
        yield f"  sweep   {address}/{run_page(experiment, run_id)}"
        if (home.sweep(name) / PAGE).exists():
            yield f"  report  {address}/{run_page(experiment, run_id, PAGE)}"


def _check(arguments: argparse.Namespace) -> None:
    if ":" in arguments.host and not is_loopback(arguments.host) and arguments.host != "::":
        raise RequestError(
            f"--host {arguments.host}: MLflow's pages do not open under an IPv6 address; listen on "
            "every one with --host ::, and open them by the machine's name"
        )
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


def _check_only_named(arguments: argparse.Namespace, address: str) -> None:
    if arguments.auth or arguments.allowed_hosts or arguments.static_prefix:
        raise RequestError(
            f"MLFLOW_TRACKING_URI names a server, {address}, and ui then starts none: users and "
            "names are that server's; unset it to serve the home's own runs"
        )


def _password() -> str | None:
    """Ask for the first user's password twice; return None where nobody sits before a terminal."""
    if not sys.stdin.isatty():
        return None
    first = getpass.getpass(f"A password for {ADMIN}, the first user: ")
    if getpass.getpass("Again: ") != first:
        raise RequestError("the two passwords differ")
    return first
