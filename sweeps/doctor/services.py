"""Checks of Optuna's storage, MLflow and Ray."""

from __future__ import annotations

import email.utils
import os
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from sweeps.doctor.base import Asked, Check, Finding, agree, ok, unreachable, warning, wrong
from sweeps.doctor.cluster_probe import probe_cluster
from sweeps.ledger.claim import holder
from sweeps.ledger.study import check_storage, named_database, open_storage, study_file
from sweeps.ledger.trials import LEDGER_FILE, newest_generation, read_generations, sweep_names
from sweeps.results.projection import SweepProjection
from sweeps.scheduler.webhook import host_of, webhook_url
from sweeps.submit.client import JOBS_VARIABLE, api_address
from tracking.database import Database, look
from tracking.location import (
    TRACKING_VARIABLE,
    Where,
    is_server,
    sqlite_file,
    where,
    without_password,
)
from tracking.store.memory_store import MemoryTracker
from tracking.store.mlflow_client import check_reachable
from tracking.store.mlflow_store import moved_from

if TYPE_CHECKING:
    from tracking.store.mlflow_client import Answer


def _ledgers(asked: Asked) -> Iterator[Finding]:
    """Raises RequestError for one that is damaged."""
    names = sweep_names(asked.home)
    for name in names:
        read_generations(asked.home.sweep(name) / LEDGER_FILE)
    yield ok(f"{len(names)} ledger{'' if len(names) == 1 else 's'} can be read")


def _studies(asked: Asked) -> Iterator[Finding]:
    database, file = named_database(), study_file(asked.home)
    if database is None and not file.exists():
        yield ok(f"the first run makes {file.absolute()}")
        return
    if database is not None:
        check_storage(asked.home)
        look(database)  # which says who does not answer, or denies access
    open_storage(asked.home)
    yield ok(f"studies are written to {database or file.absolute()}")


TRIAL_CHECKS = (
    Check(
        "trials.ledger",
        "that the ledger of every sweep can be read",
        "cut the file where it says, or move it away: the sweep begins anew and reuses its runs",
        _ledgers,
    ),
    Check(
        "trials.study",
        "where Optuna's studies are written: reachable, of this Optuna, and Optuna's alone",
        "start the database, see to CARFT_OPTUNA_STORAGE, or remove the file: runs write it anew",
        _studies,
    ),
)


_API = "/api/2.0/mlflow"
_ANY = f"{_API}/experiments/get?experiment_id=0"
"""The experiment that every MLflow has."""
_FOREIGN = "https://elsewhere.invalid"
_HERE = ("localhost", "127.0.0.1", "::1")


def _server(asked: Asked) -> Where | None:
    """The place, where it is a server that is asked by plain HTTP."""
    place = where(asked.home.path)
    return place if urlsplit(place.named).scheme in ("http", "https") else None


def _where(asked: Asked) -> Iterator[Finding]:
    place = where(asked.home.path)
    place.check()
    shown = without_password(place.named)
    check_reachable(place.named)
    if _server(asked) is None:
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


def _version(asked: Asked) -> Iterator[Finding]:
    from tracking.store.mlflow_client import client_version, release, server_version

    place, ours = _server(asked), client_version()
    theirs = None if place is None else server_version(place.named)
    if theirs is None:
        return  # no server, or it does not let us in: told by another check
    told = f"the server is MLflow {theirs}, the client {ours}"
    if release(theirs)[0] != release(ours)[0]:
        yield wrong(told)
    elif release(theirs) < release(ours):
        yield warning(told, "update the server: a client may be older than it, but not newer")
    else:
        yield ok(told)


def _let_in(asked: Asked) -> Iterator[Finding]:
    """One answer tells of the host's name, of the credentials, and of the experiment."""
    place = _server(asked)
    if place is None:
        return
    answer = _experiment(place)
    if "Invalid Host header" in answer.text:
        host = urlsplit(without_password(place.named)).netloc
        yield wrong(
            f"the server does not know itself as {host} (Invalid Host header)",
            f"start it with --allowed-hosts {host}",
        )
    elif answer.status == 401:
        yield wrong("the server wants a name and a password, and not those that it got")
    elif answer.status == 404 and "RESOURCE_DOES_NOT_EXIST" in answer.text:
        yield ok(f"the server lets us in; the first run makes the experiment {place.experiment}")
    elif answer.status == 200:
        yield _of_experiment(place, answer)
    else:
        told = f"the server answers {answer.status}: {answer.text[:200]}"
        yield (unreachable if answer.status >= 500 else wrong)(told)


def _of_experiment(place: Where, answer: Answer) -> Finding:
    found = answer.json()["experiment"]
    if found["lifecycle_stage"] != "deleted":
        return ok(f"the server lets us in, and has the experiment {place.experiment}")
    return wrong(
        f"the experiment {place.experiment} was deleted, and MLflow keeps its name",
        f"mlflow experiments restore --experiment-id {found['experiment_id']}, or name another one "
        "in MLFLOW_EXPERIMENT_NAME",
    )


def _experiment(place: Where) -> Answer:
    from tracking.store.mlflow_client import ask

    name = quote(place.experiment, safe="")
    return ask(place.named, f"{_API}/experiments/get-by-name?experiment_name={name}")


def _pages(asked: Asked) -> Iterator[Finding]:
    """A browser says from which page a request comes, which the client never does."""
    from tracking.store.mlflow_client import ask

    place = _server(asked)
    if place is None:
        return
    parts = urlsplit(without_password(place.named))
    page = f"{parts.scheme}://{parts.netloc}"
    search, body = f"{_API}/experiments/search", {"max_results": 1}
    own = ask(place.named, search, "POST", headers={"Origin": page}, body=body)
    if "Cross-origin request blocked" in own.text:
        yield warning(
            f"a browser that opens {page} is refused what the pages ask for",
            f"start the server with --cors-allowed-origins {page}",
        )
    foreign = ask(place.named, search, "POST", headers={"Origin": _FOREIGN}, body=body)
    if own.status == 200 and foreign.status == 200:
        yield warning(
            "any page that a browser shows may ask this server in its user's name",
            "start it without --cors-allowed-origins '*' and --disable-security-middleware",
        )


def _protected(asked: Asked) -> Iterator[Finding]:
    """Who may read and delete runs on a server that others reach too."""
    from tracking.store.mlflow_client import ask

    place = _server(asked)
    parts = urlsplit("" if place is None else without_password(place.named))
    if place is None or parts.hostname in _HERE:
        return
    if parts.scheme == "http":
        yield warning(f"passwords and runs go to {parts.hostname} in plain text")
    if ask(place.named, _ANY, as_nobody=True).status == 200:
        yield warning("the server lets everybody in, to read, change and delete every run")


def _mlflow_clock(asked: Asked) -> Iterator[Finding]:
    from tracking.store.mlflow_client import ask

    place = _server(asked)
    if place is None:
        return
    answer = ask(place.named, "/health")
    if "Date" in answer.headers:
        theirs = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
        yield agree("MLflow's server", theirs, answer.asked, answer.came, grain=1.0)


def _mlflow_schema(asked: Asked) -> Iterator[Finding]:
    from tracking.store.mlflow_client import latest_schema

    place = where(asked.home.path)
    file = sqlite_file(place.named)
    if is_server(place.named) or (file is not None and not file.exists()):
        return
    found = look(Database(place.named, "MLflow's database", TRACKING_VARIABLE)).revision
    wanted = latest_schema()
    if found is None:
        yield ok("the database has no tables yet; the first run makes them")
    elif found == wanted:
        yield ok(f"the database's schema is that of the installed MLflow ({wanted})")
    else:
        yield wrong(
            f"the database's schema is {found}, the installed MLflow wants {wanted}",
            f"make a copy of it, then: mlflow db upgrade {without_password(place.named)}; if the "
            "schema is the newer one, install the MLflow that made it",
        )


def _artifacts(asked: Asked) -> Iterator[Finding]:
    """Of our experiment, or while there is none of the one that every server has."""
    from tracking.store.mlflow_client import ask, try_artifacts

    place = _server(asked)
    if place is None:
        return
    answer = _experiment(place)
    own = answer.status == 200
    if not own:
        answer = ask(place.named, _ANY)
    if answer.status != 200:
        return  # told by another check
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
            "ask again after the first run, which makes it",
        )
        return
    straight = "" if location.startswith("mlflow-artifacts:") else ", with this machine's own keys"
    end = "and was removed" if removed else "and stays, since this user may not delete there"
    yield ok(f"a small file went to {location} and back{straight}, {end}")


def _local(experiment: str, location: str) -> Finding:
    """An experiment that was begun in a home, or by a server that keeps no artifacts."""
    return warning(
        f"the artifacts of {experiment} go to {location} on whichever machine tells them, not to "
        "the server: the experiment was begun without it",
        "name another experiment in MLFLOW_EXPERIMENT_NAME, which the server then makes; or mount "
        "that folder on every machine",
    )


MLFLOW_CHECKS = (
    Check(
        "mlflow.place",
        "where runs are told, and that it answers; SQLite only where it is safe",
        "start the server, or mend MLFLOW_TRACKING_URI; what it lacks is sent later",
        _where,
        first=True,
    ),
    Check(
        "mlflow.version",
        "the server's version against the client's",
        "install the server's major version of MLflow here, or update the server",
        _version,
    ),
    Check(
        "mlflow.schema",
        "a database's schema against the installed MLflow, where no server stands between",
        "make a copy of the database, then mlflow db upgrade",
        _mlflow_schema,
    ),
    Check(
        "mlflow.credentials",
        "that the server takes our name, our password, and the host as we write it",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD_FILE (or MLFLOW_TRACKING_TOKEN);"
        " ask the server's administrator for EDIT on the experiment",
        _let_in,
    ),
    Check(
        "mlflow.pages",
        "that a browser may use the server's pages at this address, and other pages may not",
        "start the server with --cors-allowed-origins and the address that people write",
        _pages,
    ),
    Check(
        "mlflow.protected",
        "that a server on another machine asks for a password, and not in plain text",
        "start it with --app-name basic-auth, behind a proxy with TLS (docs: team server)",
        _protected,
    ),
    Check(
        "mlflow.artifacts",
        "a small file to the artifact store, back, and removed; no run is made for it",
        "look at the server's log: its bucket, its keys (AWS_*), its --artifacts-destination",
        _artifacts,
        seconds=60.0,
    ),
    Check(
        "mlflow.clock",
        "the server's clock against ours",
        "let both follow one time server (chronyd, systemd-timesyncd)",
        _mlflow_clock,
    ),
)


def _behind(asked: Asked) -> Iterator[Finding]:
    for name in sweep_names(asked.home):
        ledger, driver = newest_generation(asked.home, name), holder(asked.home.sweep(name))
        if ledger is None or driver is not None:
            continue
        count = SweepProjection(asked.home, ledger, _NO_STORE).behind()
        if count:
            runs = f"{count} run{' of ' if count == 1 else 's of '}{name}"
            yield warning(f"{runs} {'is' if count == 1 else 'are'} not recorded as here")


def _moved(asked: Asked) -> Iterator[Finding]:
    place = where(asked.home.path)
    file = sqlite_file(place.named)
    if file is None or place.artifacts is None:
        return
    before = moved_from(file, place.experiment, place.artifacts)
    if before is not None:
        yield warning(f"{file} keeps artifacts in {before}: this home was moved or copied")


_NO_STORE = MemoryTracker()
"""What lies behind is known from files alone."""

SENT_CHECKS = (
    Check(
        "sent.moved",
        "that the home's own MLflow database keeps its artifacts in this home",
        "carft-sweep sync: it puts the database aside and records every run anew, here",
        _moved,
    ),
    Check(
        "sent.behind",
        "runs that the tracking server lacks though nobody drives their sweep",
        "carft-sweep sync",
        _behind,
    ),
)


_WEBHOOK_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443}


def _host(_: Asked) -> Iterator[Finding]:
    url = webhook_url(None)
    if url is None:
        yield ok("none is set in CARFT_WEBHOOK")
        return
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    try:
        socket.create_connection((parts.hostname or "", port), _WEBHOOK_SECONDS).close()
    except OSError as error:
        # Only a warning: sweeps go on without it, and behind a proxy no host is reached straight.
        yield warning(f"{host_of(url)} cannot be reached: {error.strerror or error}")
        return
    yield ok(f"{host_of(url)} can be reached; nothing was sent")


WEBHOOK_CHECKS = (
    Check(
        "webhook.host",
        "whether the host in CARFT_WEBHOOK takes connections; nothing is sent",
        "look at the address, and at the network; sweeps go on without it",
        _host,
    ),
)


_CLUSTER_SECONDS, _NODES_SECONDS = 45.0, 150.0


def _cluster(asked: Asked) -> Iterator[Finding]:
    if asked.address is None:
        yield ok("no cluster is named (--address, RAY_ADDRESS): runs execute on this machine")
        return
    if asked.nodes:
        return  # one look tells both
    told = probe_cluster(asked.address, None, _CLUSTER_SECONDS)
    yield _supply(asked.address, told)


def _nodes(asked: Asked) -> Iterator[Finding]:
    if asked.address is None or not asked.nodes:
        return
    told = probe_cluster(asked.address, asked.home.path, _NODES_SECONDS)
    yield _supply(asked.address, told)
    for problem in told["problems"]:
        yield wrong(problem)
    for name, answer in told["answers"].items():
        yield from _node(name, answer, next(iter(told["answers"].values())))


def _supply(address: str, told: Mapping[str, Any]) -> Finding:
    nodes = told["nodes"]
    jobs = f"takes jobs at {told['jobs']}" if told["jobs"] else "takes no jobs: no dashboard"
    cpus, gpus = (sum(node[what] for node in nodes.values()) for what in ("cpus", "gpus"))
    return ok(
        f"Ray {told['version']} at {address}: {_count(len(nodes), 'node')}, "
        f"{_count(cpus, 'CPU')}, {_count(gpus, 'GPU')} ({', '.join(nodes)}); {jobs}"
    )


def _node(name: str, answer: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[Finding]:
    if "failed" in answer:
        yield unreachable(f"{name} does not answer: {answer['failed']}")
        return
    versions = answer["versions"]
    told = ", ".join(f"{package} {version}" for package, version in versions.items())
    gpus = "; ".join(answer["gpus"]) or "no GPU"
    yield ok(f"{name}: {told}, {gpus}")
    others = first.get("versions", versions)
    for package, version in versions.items():
        if version == "missing":
            yield wrong(f"{name} has no {package}")
        elif version != others[package]:
            yield warning(f"{name} has {package} {version}, the first node {others[package]}")
    yield agree(name, answer["now"], answer["asked"], answer["came"])


def _jobs(_: Asked) -> Iterator[Finding]:
    """What `submit` talks to, from wherever it is reached."""
    if not os.environ.get(JOBS_VARIABLE):
        return
    from sweeps.submit.client import JobsApi

    api = JobsApi(api_address(None))
    version = api.ray_version()
    api.jobs()  # a token is wanted for these
    yield ok(f"the job API at {api.shown} answers, Ray {version}")


def _count(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"


RAY_CHECKS = (
    Check(
        "ray.cluster",
        "the cluster at --address or RAY_ADDRESS: version, nodes, resources, dashboard",
        "start it (ray start --head), or mend the address; Python and Ray must be the cluster's",
        _cluster,
        seconds=_CLUSTER_SECONDS + 15,
    ),
    Check(
        "ray.nodes",
        "with --nodes: each node sees the home, has our sources and like versions, its GPUs, clock",
        "mount the home under the same path, and install the same versions everywhere",
        _nodes,
        seconds=_NODES_SECONDS + 15,
    ),
    Check(
        "ray.jobs",
        "the job API at RAY_API_SERVER_ADDRESS, which submit talks to, and that it takes our token",
        "start the head with ray[default] and --dashboard-host, or mend RAY_API_SERVER_ADDRESS",
        _jobs,
        seconds=60.0,
    ),
)
