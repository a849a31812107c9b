"""The commands around sweeps: init, doctor, schema, sync, clean, ui."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.requirements import refuse_outdated
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.table import table_lines
from carft_sweep.sweeps.doctor.base import FAULTS, Scope
from carft_sweep.sweeps.engines.factory import address_of
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.claim import holder
from carft_sweep.sweeps.ledger.status import summaries
from carft_sweep.sweeps.ledger.trials import (
    begun_sweeps,
    sweep_folder,
)
from carft_sweep.sweeps.results.artifacts import PAGE
from carft_sweep.sweeps.results.sent_log import SentLog
from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable
from carft_sweep.tracking.location import (
    TrackingLocation,
    is_server,
    resolve_location,
    without_password,
)
from carft_sweep.tracking.store.base import ARM, Tracker, describe
from carft_sweep.tracking.store.mlflow_client import experiment_id, refuse_if_moved
from carft_sweep.tracking.store.mlflow_pages import SWEEPS, run_page, runs_page
from carft_sweep.tracking.store.mlflow_store import open_store
from carft_sweep.tracking.ui_server import ADMIN, is_loopback, prepare, serve

LISTED_CLASSES = 30
"""Listed one by one; of more classes only the sums."""
LISTED_TEXTS = 20
LINKED_SWEEPS = 5
"""The newest ones, to whose pages `ui` leads."""


def init_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the command. Raises RequestError when the folder cannot be used."""
    from carft_sweep.sweeps.scaffold.write import write_scaffold

    out = Path(arguments.out or ".")
    scaffold = write_scaffold(
        Path(arguments.folder), out, name=arguments.name, force=arguments.force
    )
    if arguments.json:
        emit(json.dumps(scaffold, indent=1))
        return 0
    text = "\n".join(_scaffold_lines(scaffold))
    emit(text.encode("utf-8", "backslashreplace").decode())
    return 0


def _scaffold_lines(scaffold: Mapping[str, Any]) -> Iterator[str]:
    yield f"{scaffold['root']}: {scaffold['layout']}"
    yield ""
    yield from _counts(scaffold["counts"], train=scaffold["train"])
    for title, texts in (
        ("Assumed:", scaffold["assumed"]),
        ("Worth a look:", scaffold["doubts"]),
        ("To be corrected before it runs:", scaffold["problems"]),
    ):
        if texts:
            yield from ("", title, *(f"  - {text}" for text in texts[:LISTED_TEXTS]))
        if len(texts) > LISTED_TEXTS:
            yield f"  and {len(texts) - LISTED_TEXTS} more"
    yield ""
    files = f"{os.path.relpath(scaffold['family'])} and {os.path.relpath(scaffold['sweep'])}"
    yield f"Wrote {files}. Next:"
    yield from (f"  {command}" for command in scaffold["next"])


def _counts(counts: Mapping[str, Mapping[str, int]], *, train: str) -> Iterator[str]:
    """Yield a table of images by class and split; of many classes their sums alone. `train` is the
    folder that is trained on.
    """
    called = {} if train in (".", "train") else {"train": f"train ({train})"}
    splits = {called.get(name, name): classes for name, classes in counts.items() if classes}
    classes = list(counts["train"])
    rows = [
        [name, *(str(images.get(name, 0)) for images in splits.values())]
        for name in (classes if len(classes) <= LISTED_CLASSES else ())
    ]
    rows.append(["all classes", *(str(sum(images.values())) for images in splits.values())])
    if len(classes) > LISTED_CLASSES:
        rows.append(["classes", *(str(len(images)) for images in splits.values())])
    return table_lines(["", *splits], rows, right=[*splits])


def doctor_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the command. 2 when anything is wrong, else 4 when a service is unreachable."""
    from carft_sweep.sweeps.doctor.examination import SUBJECTS, run_checks, select_checks

    home = find_home(arguments.home, trust=arguments.trust_home)
    scope = Scope(home, address_of(arguments.address), arguments.nodes)
    findings = []
    subject = None
    for check, finding in run_checks(select_checks(arguments.only), scope):
        findings.append((check, finding))
        if arguments.json:
            continue
        if check.subject != subject:
            subject = check.subject
            emit(SUBJECTS[subject])
        emit(f"  {finding.level:<11}  {finding.message}")
        if finding.advice:
            emit(f"  {'':<11}  -> {finding.advice}")
    levels = [finding.level for _, finding in findings]
    if arguments.json:
        checks = [{"check": check.name, **asdict(finding)} for check, finding in findings]
        emit(json.dumps({"checks": checks}, indent=1))
    else:
        emit(_summary(levels))
    return next((code for level, code in FAULTS.items() if level in levels), 0)


def _summary(levels: Sequence[str]) -> str:
    parts = []
    for level, one, several in (
        ("wrong", "thing is wrong", "things are wrong"),
        ("unreachable", "service does not answer", "services do not answer"),
        ("warning", "warning", "warnings"),
    ):
        if count := levels.count(level):
            parts.append(f"{count} {one if count == 1 else several}")
    return f"{', '.join(parts)}." if parts else "All is well."


def schema_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the command."""
    from carft_sweep.sweeps.spec.schema import family_schema, sweep_schema

    schema = family_schema() if arguments.family else sweep_schema()
    emit(json.dumps(schema, indent=1))
    return 0


def sync_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the command. Raises ServiceUnreachable when the server does not answer."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    for name in arguments.sweeps:
        sweep_folder(home, name)
    names = dict.fromkeys(arguments.sweeps) or begun_sweeps(home)
    if not names:
        raise RequestError(f"no sweep was run in {home.path} yet: there is nothing to send")
    driven = {name: driver for name in names if (driver := holder(home.sweep(name))) is not None}
    for name, driver in driven.items():
        emit(f"{name} is being run by {driver}, which sends its runs.")
    idle, news, code = [name for name in names if name not in driven], 0, 0
    with closing(open_store(home.path)) as store:
        _preflight(store)
        for name in idle:
            for line in _sync(home, name, store):
                emit(f"{name}: {line.text}")
                news += 1
                code = max(code, line.code)
    for name in idle:
        for line in _sync_study(home, name):
            emit(f"{name}: {line.text}")
            news += 1
            code = max(code, line.code)
    if not news and not driven:
        emit(f"{without_password(resolve_location(home.path).uri)} has every run as it is here.")
    return code


_LATER = "Nothing is lost: sync again when the server answers"


def _preflight(store: Tracker) -> None:
    try:
        store.preflight()
    except AccessDenied:
        raise
    except ServiceUnreachable as away:
        raise ServiceUnreachable(f"{away}. {_LATER}") from away


class _News(NamedTuple):
    """What `sync` did of a sweep, or could not do."""

    text: str
    code: int = 0
    """The exit code that follows."""


def _sync(home: Home, name: str, store: Tracker) -> Iterator[_News]:
    """Send what the tracking store lacks of a sweep."""
    from carft_sweep.sweeps.results.export import log_missing_model
    from carft_sweep.sweeps.results.projection import project

    try:
        projection = project(home, name, store)
    except AccessDenied:
        raise
    except ServiceUnreachable as away:
        raise ServiceUnreachable(f"{away}; the runs of {name} are not all sent. {_LATER}") from away
    if projection.sent:
        yield _News(f"{projection.sent} run{'' if projection.sent == 1 else 's'} sent.")
    yield from map(_News, projection.notes)
    note = log_missing_model(home, name)
    if note is not None:
        yield _News(note)
    for (run, what), reason in projection.refused.items():
        yield _News(f"{what} of {describe(run)} was refused: {reason}")
    if projection.unlisted:
        yield _News(f"the files of its runs could not be listed: {projection.unlisted}")
    for run, reason in projection.unreadable.items():
        yield _News(f"{describe(run)} is not sent, since it cannot be read: {reason}", 1)


def _sync_study(home: Home, name: str) -> Iterator[_News]:
    """Write what the Optuna studies of a sweep lack."""
    from carft_sweep.sweeps.ledger.study import mend_studies

    try:
        count = mend_studies(home, name)
    except ServiceUnreachable as away:
        yield _News(f"its Optuna study is not written: {away}", 4)
    except Exception as error:  # whatever Optuna and the drivers of databases raise
        lines = str(error).splitlines() or [type(error).__name__]
        yield _News(f"its Optuna study is not written: {lines[0]}", 1)
    else:
        if count:
            yield _News(f"{count} trial{'' if count == 1 else 's'} written to its Optuna study.")


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
