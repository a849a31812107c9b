"""Checks of Optuna's storage, MLflow and Ray."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from sweeps.doctor.base import Check, Finding, Scope, declare, ok, unreachable, warning, wrong
from sweeps.doctor.cluster_probe import probe_cluster
from sweeps.home import JOURNAL, Home
from sweeps.ledger.claim import holder
from sweeps.ledger.storage import STORAGE_VARIABLE
from tracking.database import Database, Found, look
from tracking.journal import records_behind, records_refused, sweeps_behind
from tracking.location import (
    TRACKING_VARIABLE,
    Where,
    is_server,
    sqlite_file,
    where,
    without_password,
)
from tracking.store.mlflow_client import check_reachable

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

    from tracking.store.mlflow_client import Answer

CHECKS: list[Check] = []
check = functools.partial(declare, CHECKS)


@check(
    "trials.storage",
    "Optuna's database or journal: reachable, readable, the one that the home began with",
    "start the database, or see to CARFT_OPTUNA_STORAGE",
    is_gate=True,
)
def _storage(scope: Scope) -> Iterator[Finding]:
    home, database = scope.home, scope.home.database
    if database is not None:
        studies = "has studies" if look(database).is_optunas else "has no studies yet"
        yield ok(f"{database} lets us in, and {studies}")
        return
    file = home.optuna
    if file.name == JOURNAL and file.exists():
        from sweeps.ledger.storage import storage

        storage(home)  # says what is wrong with it
    yield ok(f"{file.absolute()}{'' if file.exists() else ', which the first run begins'}")


@check(
    "trials.schema",
    "the database's schema against the installed Optuna",
    "make a copy of it, then: optuna storage upgrade --storage URL",
)
def _storage_schema(scope: Scope) -> Iterator[Finding]:
    database = _database(scope.home)
    found = None if database is None else look(database)
    if found is None:
        return
    head = _scripts().get_current_head()
    if not found.is_optunas:
        yield ok("the database has no tables of Optuna's yet; the first run makes them")
    elif found.revision == head:
        yield ok(f"the database's schema is that of the installed Optuna ({head})")
    else:
        yield wrong(
            f"the database's schema is {found.revision}, the installed Optuna wants {head}",
            _to_mend(found),
        )


def _to_mend(found: Found) -> str:
    if found.revision in {script.revision for script in _scripts().walk_revisions()}:
        return (
            "make a copy of it, then: optuna storage upgrade --storage URL, that of "
            f"{STORAGE_VARIABLE}"
        )
    return "install the newer Optuna that made it: pip install -U optuna"


@check(
    "trials.apart",
    "that it is Optuna's alone: MLflow and others keep a table alembic_version too",
    "give Optuna a database of its own in CARFT_OPTUNA_STORAGE",
)
def _apart(scope: Scope) -> Iterator[Finding]:
    database = _database(scope.home)
    if scope.home.database is not None:
        from sweeps.ledger.storage import check

        check(scope.home.path, scope.home.database)
    elif database is not None and look(database).is_mlflows:
        yield wrong(f"{database} has MLflow's tables")


def _database(home: Home) -> Database | None:
    """That of the environment, or the home's own file; None for a journal or where none is yet."""
    if home.database is not None:
        return home.database
    file = home.optuna
    if file.name == JOURNAL or not file.exists():
        return None
    return Database(f"sqlite:///{file.absolute()}", "Optuna's database", STORAGE_VARIABLE)


def _scripts() -> ScriptDirectory:
    """The migrations of the installed Optuna."""
    import optuna
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(optuna.__file__).parent / "storages" / "_rdb" / "alembic"))


_API = "/api/2.0/mlflow"
_ANY = f"{_API}/experiments/get?experiment_id=0"
"""The experiment that every MLflow has."""


def _server(scope: Scope) -> Where | None:
    """Return the place where it is a server that speaks HTTP."""
    place = where(scope.home.path)
    return place if urlsplit(place.named).scheme in ("http", "https") else None


@check(
    "mlflow.place",
    "where runs are recorded, and that it answers; SQLite only where it is safe",
    "start the server, or mend MLFLOW_TRACKING_URI; meanwhile runs wait in the spool",
    is_gate=True,
)
def _where(scope: Scope) -> Iterator[Finding]:
    place = where(scope.home.path)
    place.check()
    shown = without_password(place.named)
    check_reachable(place.named)
    if _server(scope) is None:
        file = sqlite_file(place.named)
        begins = file is not None and not file.exists()
        yield ok(f"{shown}{', which the first run begins' if begins else ''}")
        return
    from tracking.store.mlflow_client import ask

    health = ask(place.named, "/health")
    if health.status == 200 and health.text.strip() == "OK":
        yield ok(f"{shown} answers, experiment {place.experiment}")
    elif health.status >= 500:
        yield unreachable(f"{shown} answers {health.status}: what is behind it is away")
    else:
        yield wrong(
            f"{shown} answers {health.status} to /health, as no MLflow does",
            "look at the address in MLFLOW_TRACKING_URI, with its path where a proxy has one",
        )


@check(
    "mlflow.version",
    "the server's version against the client's",
    "install the server's major version of MLflow here, or update the server",
)
def _version(scope: Scope) -> Iterator[Finding]:
    from tracking.store.mlflow_client import client_version, release, server_version

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
    elif answer.status == 401:
        yield wrong("the server rejected the user name or password (401)")
    elif answer.status == 404 and "RESOURCE_DOES_NOT_EXIST" in answer.text:
        yield ok(f"the server accepts us; the first run makes the experiment {place.experiment}")
    elif answer.status == 200:
        yield _of_experiment(place, answer)
    else:
        message = f"the server answers {answer.status}: {answer.text[:200]}"
        yield (unreachable if answer.status >= 500 else wrong)(message)


def _of_experiment(place: Where, answer: Answer) -> Finding:
    experiment = answer.json()["experiment"]
    if experiment["lifecycle_stage"] != "deleted":
        return ok(f"the server accepts us, and has the experiment {place.experiment}")
    return wrong(
        f"the experiment {place.experiment} was deleted, and MLflow keeps its name",
        f"mlflow experiments restore --experiment-id {experiment['experiment_id']}, or name "
        "another one in MLFLOW_EXPERIMENT_NAME",
    )


def _experiment(place: Where) -> Answer:
    from tracking.store.mlflow_client import ask

    name = quote(place.experiment, safe="")
    return ask(place.named, f"{_API}/experiments/get-by-name?experiment_name={name}")


@check(
    "mlflow.schema",
    "a database's schema against the installed MLflow, where no server stands between",
    "make a copy of the database, then mlflow db upgrade",
)
def _mlflow_schema(scope: Scope) -> Iterator[Finding]:
    from tracking.store.mlflow_client import latest_schema

    place = where(scope.home.path)
    file = sqlite_file(place.named)
    if is_server(place.named) or (file is not None and not file.exists()):
        return
    revision = look(Database(place.named, "MLflow's database", TRACKING_VARIABLE)).revision
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
    from tracking.store.mlflow_client import ask, try_artifacts

    place = _server(scope)
    if place is None:
        return
    answer = _experiment(place)
    own = answer.status == 200
    if not own:
        answer = ask(place.named, _ANY)
    if answer.status != 200:
        return  # reported by another check
    location = str(answer.json()["experiment"]["artifact_location"])
    if urlsplit(location).scheme in ("", "file"):
        if own:
            yield _local(place.experiment, location)
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


def _local(experiment: str, location: str) -> Finding:
    """Report an experiment that was begun in a home, or by a server that keeps no artifacts."""
    return warning(
        f"the artifacts of {experiment} go to {location} on whichever machine sends them, not to "
        "the server: the experiment was begun without it",
        "name another experiment in MLFLOW_EXPERIMENT_NAME, which the server then makes; or mount "
        "that folder on every machine",
    )


@check(
    "spool.waiting",
    "records that wait for the tracking server though nobody delivers them",
    "carft-sweep sync",
)
def _waiting(scope: Scope) -> Iterator[Finding]:
    ours = where(scope.home.path).spool
    for folder in _folders(scope):
        for name in sweeps_behind(folder):
            message = f"{records_behind(folder, name)} records of {name} wait"
            driver = holder(scope.home.sweep(name))
            if driver is not None:
                yield ok(f"{message}; {driver} is delivering them")
            elif folder == ours:
                yield warning(message)
            else:
                yield warning(
                    f"{message} for another server or experiment than is named now",
                    "set MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME as they were for the run, "
                    "then carft-sweep sync",
                )


@check(
    "spool.refused",
    "records that the tracking server has refused",
    "read the reasons; remove the file once they are understood",
)
def _refused(scope: Scope) -> Iterator[Finding]:
    for folder in _folders(scope):
        for file, count in records_refused(folder).items():
            yield warning(f"the server refused {count} records; they lie with reasons in {file}")


def _folders(scope: Scope) -> list[Path]:
    """The home's own spool, and those for other places."""
    spool = scope.home.path.resolve() / "spool"
    below = (path for path in spool.glob("*") if path.is_dir() and path.suffix != ".files")
    return [spool, *sorted(below)]


_CLUSTER_SECONDS, _NODES_SECONDS = 45.0, 150.0


@check(
    "ray.cluster",
    "the cluster at --address or RAY_ADDRESS: version, nodes, resources, dashboard",
    "start it (ray start --head), or mend the address; Python and Ray must be the cluster's",
    seconds=_CLUSTER_SECONDS + 15,
)
def _cluster(scope: Scope) -> Iterator[Finding]:
    if scope.address is None:
        yield ok("no cluster is named (--address, RAY_ADDRESS): runs execute on this machine")
        return
    if scope.nodes:
        return  # ray.nodes reports both
    facts = probe_cluster(scope.address, None, _CLUSTER_SECONDS)
    yield _supply(scope.address, facts)


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
    yield _supply(scope.address, facts)
    for problem in facts["problems"]:
        yield wrong(problem)
    for name, answer in facts["answers"].items():
        yield from _node(name, answer, next(iter(facts["answers"].values())))


def _supply(address: str, facts: Mapping[str, Any]) -> Finding:
    nodes = facts["nodes"]
    jobs = f"takes jobs at {facts['jobs']}" if facts["jobs"] else "takes no jobs: no dashboard"
    cpus, gpus = (sum(node[what] for node in nodes.values()) for what in ("cpus", "gpus"))
    return ok(
        f"Ray {facts['version']} at {address}: {_count(len(nodes), 'node')}, "
        f"{_count(cpus, 'CPU')}, {_count(gpus, 'GPU')} ({', '.join(nodes)}); {jobs}"
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
    "the job API at RAY_API_SERVER_ADDRESS, for submit, and that it accepts the token",
    "start the head with ray[default] and --dashboard-host, or mend RAY_API_SERVER_ADDRESS",
    seconds=60.0,
)
def _jobs(_: Scope) -> Iterator[Finding]:
    """Check what `submit` sends jobs to, from wherever it is reached."""
    if not os.environ.get("RAY_API_SERVER_ADDRESS"):
        return
    from sweeps.submit.client import JobClient

    client = JobClient(None)
    client.list_jobs()  # these need a token
    yield ok(f"the job API at {client.shown} answers, Ray {client.ray_version()}")


def _count(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"
