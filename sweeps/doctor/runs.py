"""MLflow, where runs are told: reachable, lets us in, of a fitting version, keeps artifacts."""

from __future__ import annotations

import email.utils
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from sweeps.doctor.base import Asked, Check, Finding, ok, unreachable, warning, wrong
from sweeps.doctor.clock import agree
from tracking.databases import Database, look
from tracking.reachable import check_reachable, sqlite_file
from tracking.where import TRACKING_VARIABLE, Where, is_server, where, without_password

if TYPE_CHECKING:
    from tracking.mlflow_probe import Answer

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
    from tracking.mlflow_probe import ask

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
    from tracking.mlflow_probe import client_version, release, server_version

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
    from tracking.mlflow_probe import ask

    name = quote(place.experiment, safe="")
    return ask(place.named, f"{_API}/experiments/get-by-name?experiment_name={name}")


def _pages(asked: Asked) -> Iterator[Finding]:
    """A browser says from which page a request comes, which the client never does."""
    from tracking.mlflow_probe import ask

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
    from tracking.mlflow_probe import ask

    place = _server(asked)
    parts = urlsplit("" if place is None else without_password(place.named))
    if place is None or parts.hostname in _HERE:
        return
    if parts.scheme == "http":
        yield warning(f"passwords and runs go to {parts.hostname} in plain text")
    if ask(place.named, _ANY, as_nobody=True).status == 200:
        yield warning("the server lets everybody in, to read, change and delete every run")


def _clock(asked: Asked) -> Iterator[Finding]:
    from tracking.mlflow_probe import ask

    place = _server(asked)
    if place is None:
        return
    answer = ask(place.named, "/health")
    if "Date" in answer.headers:
        theirs = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
        yield agree("MLflow's server", theirs, answer.asked, answer.came, grain=1.0)


def _schema(asked: Asked) -> Iterator[Finding]:
    from tracking.mlflow_probe import latest_schema

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
    from tracking.mlflow_probe import ask, try_artifacts

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


CHECKS = (
    Check(
        "mlflow.place",
        "where runs are told, and that it answers; SQLite only where it is safe",
        "start the server, or mend MLFLOW_TRACKING_URI; meanwhile runs wait in the spool",
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
        _schema,
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
        _clock,
    ),
)
