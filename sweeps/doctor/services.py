"""Checks of ledgers and studies, MLflow and Ray."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from carft_sweep.carft_core.requirements import installed_version
from carft_sweep.sweeps.doctor.base import (
    Check,
    Finding,
    Scope,
    declare,
    ok,
    unreachable,
    warning,
    wrong,
)
from carft_sweep.sweeps.doctor.cluster_probe import probe_cluster
from carft_sweep.sweeps.engines.ray_tokens import check_version, require_ray
from carft_sweep.sweeps.ledger.claim import holder
from carft_sweep.sweeps.ledger.study import (
    DATABASE,
    check_storage,
    lacking_trials,
    named_database,
    open_storage,
    study_file,
)
from carft_sweep.sweeps.ledger.trials import (
    LEDGER_FILE,
    Ledger,
    newest_generation,
    read_generations,
    sweep_names,
)
from carft_sweep.tracking.database import Database, inspect_database, is_damaged
from carft_sweep.tracking.location import (
    TRACKING_VARIABLE,
    TrackingLocation,
    is_server,
    resolve_location,
    sqlite_file,
    without_password,
)
from carft_sweep.tracking.program import program
from carft_sweep.tracking.store.base import TrackedRun, describe
from carft_sweep.tracking.store.mlflow_client import (
    check_reachable,
    client_version,
    get,
    latest_schema,
    look_up_experiment,
    moved_from,
    release,
    server_version,
    try_artifacts,
)
from carft_sweep.tracking.store.mlflow_store import MlflowStore, open_store

if TYPE_CHECKING:
    from requests import Response

_CLUSTER_SECONDS, _NODES_SECONDS = 45.0, 150.0

CHECKS: list[Check] = []
check = functools.partial(declare, CHECKS)


@check(
    "trials.ledger",
    "that the ledger of every sweep can be read",
    "cut the file where it says, or move it away: the sweep begins anew and reuses its runs",
)
def _ledgers(scope: Scope) -> Iterator[Finding]:
    """Raises RequestError for one that is damaged."""
    names = sweep_names(scope.home)
    for name in names:
        read_generations(scope.home.sweep(name) / LEDGER_FILE)
    yield ok(f"{_count(len(names), 'ledger')} can be read")


@check(
    "trials.study",
    "where Optuna's studies are written: reachable, of this Optuna, and Optuna's alone",
    "start the database, see to CARFT_OPTUNA_STORAGE, or remove the file: sync writes it anew",
    is_gate=True,
)
def _studies(scope: Scope) -> Iterator[Finding]:
    database, file = named_database(), study_file(scope.home)
    if database is None and not file.exists():
        yield ok(f"the first run makes {file.absolute()}")
        return
    if database is None and file.name == DATABASE and is_damaged(file):
        anew = f"{scope.home.command('sync')} puts it aside and writes it anew; or remove the file"
        yield wrong(f"{file.absolute()} is damaged, or not a database", anew)
        return
    if database is not None:
        check_storage(scope.home)
        inspect_database(database)  # which says who does not answer, or denies access
    open_storage(scope.home)
    yield ok(f"studies are written to {database or file.absolute()}")


@check(
    "trials.written",
    "trials that Optuna's studies lack though nobody drives their sweep",
    f"{program()} sync",
)
def _written(scope: Scope) -> Iterator[Finding]:
    for ledger in _idle(scope):
        count = lacking_trials(scope.home, ledger)
        if count:
            lacking = f"the Optuna study of {ledger.name} lacks {_count(count, 'trial')}"
            yield warning(lacking, scope.home.command("sync"))


def _idle(scope: Scope) -> Iterator[Ledger]:
    """Yield the sweeps that nobody drives."""
    for name in sweep_names(scope.home):
        ledger = newest_generation(scope.home, name)
        if ledger is not None and holder(scope.home.sweep(name)) is None:
            yield ledger


_API = "/api/2.0/mlflow"
_ANY = f"{_API}/experiments/get?experiment_id=0"
"""The experiment that every MLflow has."""


def _server(scope: Scope) -> TrackingLocation | None:
    """Return the place where it is a server that speaks HTTP."""
    place = resolve_location(scope.home.path)
    return place if urlsplit(place.named).scheme in ("http", "https") else None


@check(
    "mlflow.place",
    "where runs are recorded, and that it answers; SQLite only where it is safe",
    "start the server, or mend MLFLOW_TRACKING_URI; meanwhile runs wait in the home",
    is_gate=True,
)
def _where(scope: Scope) -> Iterator[Finding]:
    place = resolve_location(scope.home.path)
    place.check()
    shown = without_password(place.named)
    check_reachable(place.named)
    if _server(scope) is None:
        file = sqlite_file(place.named)
        begins = file is not None and not file.exists()
        yield ok(f"{shown}{', which the first run begins' if begins else ''}")
        return
    health = get(place.named, "/health")
    if health.status_code == 200 and health.text.strip() == "OK":
        yield ok(f"{shown} answers, experiment {place.experiment}")
    elif health.status_code >= 500:
        yield unreachable(f"{shown} answers {health.status_code}: what is behind it is away")
    else:
        yield wrong(
            f"{shown} answers {health.status_code} to /health, as no MLflow does",
            "look at the address in MLFLOW_TRACKING_URI, with its path where a proxy has one",
        )


@check(
    "mlflow.version",
    "the server's version against the client's",
    "install the server's major version of MLflow here, or update the server",
)
def _version(scope: Scope) -> Iterator[Finding]:
    place, ours = _server(scope), client_version()
    theirs = None if place is None else server_version(place.named)
    if theirs is None:
        return  # no server, or it does not let us in: reported by another check
    message = f"the server is MLflow {theirs}, the client {ours}"
    if release(theirs)[0] != release(ours)[0]:
        yield wrong(message)
    elif release(theirs) < release(ours):
        yield warning(message, "update the server: a client may be older than it, but not newer")
    else:
        yield ok(message)


@check(
    "mlflow.credentials",
    "that the server accepts the user name, the password, and the host name",
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD_FILE (or MLFLOW_TRACKING_TOKEN);"
    " ask the server's administrator for EDIT on the experiment",
)
def _let_in(scope: Scope) -> Iterator[Finding]:
    """Check the host's name, the credentials and the experiment by one request."""
    place = _server(scope)
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
    elif answer.status_code == 200:
        yield _of_experiment(place, answer)
    else:
        message = f"the server answers {answer.status_code}: {answer.text[:200]}"
        yield (unreachable if answer.status_code >= 500 else wrong)(message)


def _of_experiment(place: TrackingLocation, answer: Response) -> Finding:
    experiment = answer.json()["experiment"]
    if experiment["lifecycle_stage"] != "deleted":
        return ok(f"the server accepts us, and has the experiment {place.experiment}")
    return wrong(
        f"the experiment {place.experiment} was deleted, and MLflow keeps its name",
        f"mlflow experiments restore --experiment-id {experiment['experiment_id']}, or name "
        "another one in MLFLOW_EXPERIMENT_NAME",
    )


def _experiment(place: TrackingLocation) -> Response:
    name = quote(place.experiment, safe="")
    return get(place.named, f"{_API}/experiments/get-by-name?experiment_name={name}")


@check(
    "mlflow.schema",
    "a database's schema against the installed MLflow, where no server stands between",
    "make a copy of the database, then mlflow db upgrade",
)
def _mlflow_schema(scope: Scope) -> Iterator[Finding]:
    place = resolve_location(scope.home.path)
    file = sqlite_file(place.named)
    if is_server(place.named) or (file is not None and not file.exists()):
        return
    revision = inspect_database(
        Database(place.named, "MLflow's database", TRACKING_VARIABLE)
    ).revision
    latest = latest_schema()
    if revision is None:
        yield ok("the database has no tables yet; the first run makes them")
    elif revision == latest:
        yield ok(f"the database's schema is that of the installed MLflow ({latest})")
    else:
        yield wrong(
            f"the database's schema is {revision}, the installed MLflow wants {latest}",
            f"make a copy of it, then: mlflow db upgrade {without_password(place.named)}; if the "
            "schema is the newer one, install the MLflow that made it",
        )


@check(
    "mlflow.artifacts",
    "a small file to the artifact store, back, and removed; no run is made for it",
    "look at the server's log: its bucket, its keys (AWS_*), its --artifacts-destination",
    seconds=60.0,
)
def _artifacts(scope: Scope) -> Iterator[Finding]:
    """Check our experiment, or while there is none the one that every server has."""
    place = _server(scope)
    if place is None:
        return
    answer = _experiment(place)
    own = answer.status_code == 200
    if not own:
        answer = get(place.named, _ANY)
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
        removed = try_artifacts(place.named, location)
    except RuntimeError as error:
        if own or "403" not in str(error):
            raise
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
    "sent.moved",
    "that the home's own MLflow database keeps its artifacts in this home",
    f"{program()} sync: it puts the database aside and records every run anew, here",
)
def _moved(scope: Scope) -> Iterator[Finding]:
    place = resolve_location(scope.home.path)
    before = moved_from(place.named, place.experiment, place.artifacts)
    if before is not None:
        moved = (
            f"{sqlite_file(place.named)} keeps artifacts in {before}: this home was moved or copied"
        )
        anew = "it puts the database aside and records every run anew, here"
        yield warning(moved, f"{scope.home.command('sync')}: {anew}")


@check(
    "sent.behind",
    "runs that the server lacks, or has in another state, though nobody drives their sweep",
    f"{program()} sync",
    seconds=60.0,
)
def _behind(scope: Scope) -> Iterator[Finding]:
    from carft_sweep.sweeps.results.projection import SweepProjection

    idle, is_well = [*_idle(scope)], True
    if not idle:
        return
    store = _recorded(scope)
    for ledger in idle:
        projection = SweepProjection(scope.home, ledger, store)
        projection.compare_with_store()
        count = projection.behind()
        if count:
            lacking = f"{_count(count, 'run')} of {ledger.name}"
            behind = f"{lacking} {'is' if count == 1 else 'are'} not recorded as here"
            yield warning(behind, scope.home.command("sync"))
        elif projection.is_end_behind:
            behind = f"the end of {ledger.name} is not recorded as here"
            yield warning(behind, scope.home.command("sync"))
        for digest, reason in projection.unreadable.items():
            yield wrong(f"{describe(digest)} of {ledger.name} cannot be read: {reason}")
        is_well = is_well and not (count or projection.is_end_behind or projection.unreadable)
    if is_well:
        yield ok("every run is recorded, in its state; whether its files are there is seen by sync")


class _NothingRecorded(MlflowStore):
    """A place that the first run makes."""

    def runs_of(self, sweep: str) -> dict[str, TrackedRun]:
        """Make no connection, which would create the database."""
        del sweep
        return {}


def _recorded(scope: Scope) -> MlflowStore:
    """Open what a home's runs are recorded in."""
    place = resolve_location(scope.home.path)
    file = sqlite_file(place.uri)
    check_reachable(place.named)
    begins = file is not None and not file.exists()
    is_moved = moved_from(place.named, place.experiment, place.artifacts) is not None
    if begins or is_moved or look_up_experiment(place.named, place.experiment) is None:
        return _NothingRecorded(place.named)
    return open_store(scope.home.path)


@check(
    "ray.cluster",
    "the cluster at --address or RAY_ADDRESS: version, nodes, resources, dashboard, tokens",
    "start it (ray start --head), or mend the address; Python and Ray must be the cluster's",
    seconds=_CLUSTER_SECONDS + 15,
)
def _cluster(scope: Scope) -> Iterator[Finding]:
    if scope.address is not None or installed_version("ray") is not None:
        require_ray()
    if scope.address is None:
        yield ok("no cluster is named (--address, RAY_ADDRESS): runs execute on this machine")
        return
    if scope.nodes:
        return  # ray.nodes reports both
    facts = probe_cluster(scope.address, None, _CLUSTER_SECONDS)
    yield from _supply(scope.address, facts)


@check(
    "ray.nodes",
    "with --nodes: each node sees the home, has our sources and like versions, its GPUs",
    "mount the home under the same path, and install the same versions everywhere",
    seconds=_NODES_SECONDS + 15,
)
def _nodes(scope: Scope) -> Iterator[Finding]:
    if scope.address is None or not scope.nodes:
        return
    facts = probe_cluster(scope.address, scope.home.path, _NODES_SECONDS)
    yield from _supply(scope.address, facts)
    for problem in facts["problems"]:
        yield wrong(problem)
    for name, answer in facts["answers"].items():
        yield from _node(name, answer, next(iter(facts["answers"].values())))


_TOKENS = "start its nodes with RAY_AUTH_MODE=token and a token, and set both here"


def _supply(address: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    nodes = facts["nodes"]
    jobs = f"takes jobs at {facts['jobs']}" if facts["jobs"] else "takes no jobs: no dashboard"
    cpus, gpus = (sum(node[what] for node in nodes.values()) for what in ("cpus", "gpus"))
    yield ok(
        f"Ray {facts['version']} at {address}: {_count(len(nodes), 'node')}, "
        f"{_count(cpus, 'CPU')}, {_count(gpus, 'GPU')} ({', '.join(nodes)}); {jobs}"
    )
    if not facts["token"]:
        yield warning(
            f"the Ray at {address} asks for no token: whoever reaches its ports runs code as its "
            "user",
            _TOKENS,
        )


def _node(name: str, answer: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[Finding]:
    if "failed" in answer:
        yield unreachable(f"{name} does not answer: {answer['failed']}")
        return
    versions = answer["versions"]
    message = ", ".join(f"{package} {version}" for package, version in versions.items())
    gpus = "; ".join(answer["gpus"]) or "no GPU"
    yield ok(f"{name}: {message}, {gpus}")
    others = first.get("versions", versions)
    for package, version in versions.items():
        if version == "missing":
            yield wrong(f"{name} has no {package}")
        elif version != others[package]:
            yield warning(f"{name} has {package} {version}, the first node {others[package]}")


@check(
    "ray.jobs",
    "the job API at RAY_API_SERVER_ADDRESS, for submit, and that it accepts the token alone",
    "start the head with ray[default] and --dashboard-host, or mend RAY_API_SERVER_ADDRESS",
    seconds=60.0,
)
def _jobs(_: Scope) -> Iterator[Finding]:
    """Check what `submit` sends jobs to, from wherever it is reached."""
    if not os.environ.get("RAY_API_SERVER_ADDRESS"):
        return
    from carft_sweep.sweeps.submit.client import JobClient, unencrypted

    client = JobClient(None)
    client.list_jobs()  # these need a token
    check_version(client.ray_version(), "the cluster")
    yield ok(f"the job API at {client.shown} answers, Ray {client.ray_version()}")
    if client.is_open():
        yield warning(f"{client.shown} takes jobs from whoever reaches it: no token", _TOKENS)
    if message := unencrypted(None):
        yield warning(message, "use https://, or a tunnel")


def _count(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"
