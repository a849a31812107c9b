"""Checks of MLflow, of what MLflow and Optuna were sent, and of Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from carft_sweep.sweeps.doctor.checks import Finding, check, ok, unreachable, warning, wrong
from carft_sweep.sweeps.engines.ray_tokens import check_version
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.claim import holder
from carft_sweep.sweeps.ledger.ledger import Ledger, newest_generation, sweep_names
from carft_sweep.sweeps.ledger.optuna_copy import lacking_trials
from carft_sweep.tracking.location import (
    TrackingLocation,
    resolve_location,
    sqlite_file,
    without_password,
)
from carft_sweep.tracking.program import program
from carft_sweep.tracking.store import mlflow_client
from carft_sweep.tracking.store.base import TrackedRun, describe
from carft_sweep.tracking.store.mlflow_store import MlflowStore, open_store

if TYPE_CHECKING:
    from requests import Response

_API = "/api/2.0/mlflow"
_ANY = f"{_API}/experiments/get?experiment_id=0"
"""The endpoint of experiment 0, which every MLflow has."""


def _server(home: Home) -> TrackingLocation | None:
    """Return MLflow's location if it is a server that speaks HTTP; else None."""
    place = resolve_location(home.path)
    return place if urlsplit(place.named).scheme in ("http", "https") else None


@check(
    "mlflow.place",
    "where runs are recorded, and that it answers; SQLite only where it is safe",
    "start the server, or mend MLFLOW_TRACKING_URI; meanwhile runs wait in the home",
    is_gate=True,
)
def _where(home: Home) -> Iterator[Finding]:
    place = resolve_location(home.path)
    place.check()
    address = without_password(place.named)
    mlflow_client.check_reachable(place.named)
    if _server(home) is None:
        file = sqlite_file(place.named)
        begins = file is not None and not file.exists()
        yield ok(f"{address}{', which the first run begins' if begins else ''}")
        return
    health = mlflow_client.get(place.named, "/health")
    if health.status_code == 200 and health.text.strip() == "OK":
        yield ok(f"{address} answers, experiment {place.experiment}")
    elif health.status_code >= 500:
        yield unreachable(f"{address} answers {health.status_code}: what is behind it is away")
    else:
        yield wrong(
            f"{address} answers {health.status_code} to /health, as no MLflow does",
            "look at the address in MLFLOW_TRACKING_URI, with its path where a proxy has one",
        )


@check(
    "mlflow.version",
    "the server's version against the client's",
    "install the server's major version of MLflow here, or update the server",
)
def _version(home: Home) -> Iterator[Finding]:
    place, client = _server(home), version("mlflow")
    server = None if place is None else mlflow_client.server_version(place.named)
    if server is None:
        return  # no server, or it does not let us in: reported by another check
    message = f"the server is MLflow {server}, the client {client}"
    if mlflow_client.release(server)[0] != mlflow_client.release(client)[0]:
        yield wrong(message)
    elif mlflow_client.release(server) < mlflow_client.release(client):
        yield warning(message, "update the server: a client may be older than it, but not newer")
    else:
        yield ok(message)


@check(
    "mlflow.credentials",
    "that the server accepts the user name, the password, and the host name",
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD_FILE (or MLFLOW_TRACKING_TOKEN);"
    " ask the server's administrator for EDIT on the experiment",
)
def _let_in(home: Home) -> Iterator[Finding]:
    """Yield findings on the host's name, the credentials and the experiment, from one request."""
    place = _server(home)
    if place is None:
        return
    answer = _experiment(place)
    if "Invalid Host header" in answer.text:
        host = urlsplit(without_password(place.named)).netloc
        yield wrong(
            f"the server does not accept the host name {host} (Invalid Host header)",
            f"start it with --allowed-hosts {host}",
        )
    elif answer.status_code == 401:
        yield wrong("the server rejected the user name or password (401)")
    elif answer.status_code == 404 and "RESOURCE_DOES_NOT_EXIST" in answer.text:
        yield ok(f"the server accepts us; the first run makes the experiment {place.experiment}")
    elif answer.status_code != 200:
        message = f"the server answers {answer.status_code}: {answer.text[:200]}"
        yield (unreachable if answer.status_code >= 500 else wrong)(message)
    elif (experiment := answer.json()["experiment"])["lifecycle_stage"] == "deleted":
        yield wrong(
            f"the experiment {place.experiment} was deleted, and MLflow keeps its name",
            f"mlflow experiments restore --experiment-id {experiment['experiment_id']}, or name "
            "another one in MLFLOW_EXPERIMENT_NAME",
        )
    else:
        yield ok(f"the server accepts us, and has the experiment {place.experiment}")


def _experiment(place: TrackingLocation) -> Response:
    name = quote(place.experiment, safe="")
    return mlflow_client.get(place.named, f"{_API}/experiments/get-by-name?experiment_name={name}")


@check(
    "mlflow.artifacts",
    "a small file to the artifact store, back, and removed; no run is made for it",
    "look at the server's log: its bucket, its keys (AWS_*), its --artifacts-destination",
    seconds=60.0,
)
def _artifacts(home: Home) -> Iterator[Finding]:
    """Yield findings on artifacts of our experiment, or of the default one before ours exists."""
    place = _server(home)
    if place is None:
        return
    answer = _experiment(place)
    own = answer.status_code == 200
    if not own:
        answer = mlflow_client.get(place.named, _ANY)
    if answer.status_code != 200:
        return  # reported by another check
    location = str(answer.json()["experiment"]["artifact_location"])
    if urlsplit(location).scheme in ("", "file"):
        if own:  # it was begun in a home, or by a server that keeps no artifacts
            yield warning(
                f"the artifacts of {place.experiment} go to {location} on whichever machine sends "
                "them, not to the server: the experiment was begun without it",
                "name another experiment in MLFLOW_EXPERIMENT_NAME, which the server then makes; "
                "or mount that folder on every machine",
            )
        return
    try:
        removed = mlflow_client.try_artifacts(place.named, location)
    except RuntimeError as error:
        if "403" not in str(error):
            raise
        if own:
            yield wrong(
                f"this user may not write into the experiment {place.experiment} (403)",
                "who made it, or the server's administrator, gives the right EDIT; or name another "
                "experiment in MLFLOW_EXPERIMENT_NAME",
            )
            return
        yield warning(
            f"not tried: there is no experiment {place.experiment} yet, and this user may not "
            "write into another one",
            "check again after the first run, which makes it",
        )
        return
    straight = "" if location.startswith("mlflow-artifacts:") else ", with this machine's own keys"
    end = "and was removed" if removed else "and stays, since this user may not delete there"
    yield ok(f"a small file went to {location} and back{straight}, {end}")


@check(
    "sent.trials",
    "trials that Optuna's studies lack though nobody drives their sweep",
    f"{program()} sync",
)
def _trials(home: Home) -> Iterator[Finding]:
    for ledger in _idle(home):
        if count := lacking_trials(home, ledger):
            lacking = f"the Optuna study of {ledger.name} lacks {count} of its trials"
            yield warning(lacking, home.command("sync"))


@check(
    "sent.runs",
    "runs that MLflow lacks, or has in another state, though nobody drives their sweep",
    f"{program()} sync",
    seconds=60.0,
)
def _runs(home: Home) -> Iterator[Finding]:
    from carft_sweep.sweeps.results.sent_log import place_of
    from carft_sweep.sweeps.results.sync import SweepSync

    idle, is_well = [*_idle(home)], True
    if not idle:
        return
    sync = home.command("sync")
    places = [place_of(home, ledger) for ledger in idle]
    stores = {place.key: _recorded(home, place) for place in places}
    for ledger, place in zip(idle, places, strict=True):
        sent = SweepSync(home, ledger, stores[place.key])
        sent.compare_with_store()
        if count := sent.count_unsent():
            yield warning(f"{count} of the runs of {ledger.name} are not recorded as here", sync)
        elif sent.is_end_unsent:
            yield warning(f"the end of {ledger.name} is not recorded as here", sync)
        for digest, reason in sent.unreadable.items():
            yield wrong(f"{describe(digest)} of {ledger.name} cannot be read: {reason}")
        is_well = is_well and not (count or sent.is_end_unsent or sent.unreadable)
    if is_well:
        yield ok("every run is recorded, in its state")


def _idle(home: Home) -> Iterator[Ledger]:
    """Yield the ledgers of sweeps without a driver. Raises RequestError for a damaged ledger."""
    for name in sweep_names(home):
        ledger = newest_generation(home, name)
        if ledger is not None and holder(home.sweep(name)) is None:
            yield ledger


class _NothingRecorded(MlflowStore):
    """The store of a place that the first run will make."""

    def runs_of(self, sweep: str) -> dict[str, TrackedRun]:
        """Return no runs, without a connection, which would create the database."""
        del sweep
        return {}


def _recorded(home: Home, place: TrackingLocation) -> MlflowStore:
    """Return the store at `place`; `_NothingRecorded` if no run of the home is recorded there."""
    file = sqlite_file(place.uri)
    mlflow_client.check_reachable(place.named)
    begins = file is not None and not file.exists()
    is_moved = mlflow_client.moved_from(place.named, place.experiment, place.artifacts) is not None
    if begins or is_moved or mlflow_client.experiment_id(place.named, place.experiment) is None:
        return _NothingRecorded(place.named)
    return open_store(home.path, experiment=place.experiment)


@check(
    "ray.jobs",
    "the job API at RAY_API_SERVER_ADDRESS, for submit, and that it accepts the token alone",
    "start the head with ray[default] and --dashboard-host, or mend RAY_API_SERVER_ADDRESS",
    seconds=60.0,
)
def _jobs(_: Home) -> Iterator[Finding]:
    """Yield findings on the job API that `submit` uses."""
    if not os.environ.get("RAY_API_SERVER_ADDRESS"):
        return
    from carft_sweep.sweeps.submit.client import JobClient, unencrypted

    client = JobClient(None)
    client.list_jobs()  # a request that needs a token
    check_version(client.ray_version(), "the cluster")
    yield ok(f"the job API at {client.shown} answers, Ray {client.ray_version()}")
    if client.is_open():
        yield warning(
            f"{client.shown} takes jobs from whoever reaches it: no token",
            "start its nodes with RAY_AUTH_MODE=token and a token, and set both here",
        )
    if message := unencrypted(None):
        yield warning(message, "use https://, or a tunnel")
