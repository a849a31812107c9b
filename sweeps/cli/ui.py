"""`carft-sweep ui`: start MLflow's server on a home."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.requirements import refuse_outdated
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.status import summaries
from carft_sweep.sweeps.results.artifacts import PAGE
from carft_sweep.sweeps.results.sent_log import SentLog
from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import TrackingLocation, is_server, resolve_location
from carft_sweep.tracking.store.base import ARM
from carft_sweep.tracking.store.mlflow_client import experiment_id, refuse_if_moved
from carft_sweep.tracking.store.mlflow_pages import SWEEPS, run_page, runs_page
from carft_sweep.tracking.ui_server import serve

LINKED_SWEEPS = 5
"""How many sweeps, the newest ones, `ui` prints page addresses of."""


def ui_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `ui` command. Raises RequestError without a home."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    place = resolve_location(home.path)
    if not is_server(place.named):
        if not home.path.exists():
            raise RequestError(f"there is no home {home.path} yet; run a sweep, or name --home")
        refuse_outdated("mlflow", "ui lets browsers reach MLflow's server")
    refuse_if_moved(place)
    if not is_server(place.uri):
        emit("MLflow's server starts; on a busy machine that takes minutes.")
    server = serve(place.uri, place.artifacts, port=arguments.port)
    for line in _pages(home, place, server.address):
        emit(line)
    if server.process is None:
        return
    emit("MLflow's own home page opens its part for language models: choose Model training there.")
    if os.environ.get("MLFLOW_DISABLE_TELEMETRY", "true").lower() in ("true", "1"):
        emit("MLflow's banner about usage data does not apply: this server sends none.")
    emit(
        "Every account of this machine may read, change and delete every run here; docs/server.md "
        "has the server that asks for passwords."
    )
    emit("Ctrl-C ends it.")
    with suppress(KeyboardInterrupt):
        server.wait()


def _pages(home: Home, place: TrackingLocation, address: str) -> Iterator[str]:
    """Yield addresses of MLflow's pages: of the home's runs, and of its newest sweeps."""
    experiment = None
    with suppress(ServiceUnreachable, TrackingError):  # then its page says so
        experiment = experiment_id(place.uri, place.experiment)
    every = sorted(summaries(home), key=lambda summary: summary["updated"], reverse=True)
    places = {
        row["name"]: resolve_location(home.path, experiment=row["experiment"]) for row in every
    }
    logs = [(name, SentLog(home.sweep(name), own)) for name, own in places.items()]
    newest = [(name, log) for name, log in logs if log.run_ids().get("")][:LINKED_SWEEPS]
    page = "" if experiment is None else f"/{runs_page(experiment, SWEEPS if newest else '')}"
    yield f"MLflow shows experiment {place.experiment} at {address}{page}"
    for name, log in newest:
        ids, own = log.run_ids(), log.experiment or experiment or ""
        yield name
        if any(run.startswith(ARM) and id_ for run, id_ in ids.items()):
            yield f"  arms    {address}/{runs_page(own, ids[''])}"
        yield f"  sweep   {address}/{run_page(own, ids[''])}"
        if (home.sweep(name) / PAGE).exists():
            yield f"  report  {address}/{run_page(own, ids[''], PAGE)}"
