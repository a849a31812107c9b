"""The commands around sweeps: init, doctor, schema, sync, clean, ui."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from carft_core.errors import RequestError, unknown
from sweeps.doctor.base import Asked, Check, Finding
from sweeps.doctor.examination import CHECKS, SUBJECTS, examine
from sweeps.engines.factory import address_of
from sweeps.home import Home, find_home
from sweeps.ledger.claim import holder
from sweeps.ledger.runs import OPTIMISER_STATE, Runs
from sweeps.ledger.trials import LEDGER_FILE, read_generations, sweep_folder, sweep_names
from sweeps.results.projection import project
from sweeps.scaffold.write import Started, start
from sweeps.spec.schema import family_schema, sweep_schema
from tracking.errors import ServiceUnreachable
from tracking.location import is_server, resolve_location, without_password
from tracking.store.base import Tracker
from tracking.store.mlflow_store import open_store
from tracking.ui_server import ADMIN, is_loopback, prepare, serve

Say = Callable[[str], None]
MOST_CLASSES = 30
"""Listed one by one; of more only the sums are told."""
MOST_TOLD = 20


def init_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError when the folder cannot be used."""
    out = Path(arguments.out or ".")
    done = start(Path(arguments.folder), out, name=arguments.name, force=arguments.force)
    if arguments.json:
        say(json.dumps(done.as_dict(), indent=1))
        return 0
    for line in _init_lines(done):
        say(line.encode("utf-8", "backslashreplace").decode())
    return 0


def _init_lines(done: Started) -> Iterator[str]:
    yield f"{done.root}: {done.layout}"
    yield ""
    yield from _counts(done)
    yield from _told("Assumed:", done.assumed)
    yield from _told("Worth a look:", done.doubts)
    yield from _told("Has to be mended before it runs:", done.mend)
    yield ""
    yield f"Wrote {os.path.relpath(done.family)} and {os.path.relpath(done.sweep)}. Next:"
    for command in done.next:
        yield f"  {command}"


def _counts(done: Started) -> Iterator[str]:
    splits = {name: classes for name, classes in done.counts.items() if classes}
    classes = list(done.counts["train"])
    named = classes if len(classes) <= MOST_CLASSES else []
    first = max(map(len, ["all classes", *named]))
    widths = {name: max(len(name), 6) for name in splits}
    yield " ".join([" " * first, *(f"{name:>{widths[name]}}" for name in splits)])
    for one in named:
        cells = (f"{found.get(one, 0):>{widths[name]}}" for name, found in splits.items())
        yield " ".join([f"{one:<{first}}", *cells])
    sums = (f"{sum(found.values()):>{widths[name]}}" for name, found in splits.items())
    yield " ".join([f"{'all classes':<{first}}", *sums])
    if not named:
        kinds = (f"{len(found):>{widths[name]}}" for name, found in splits.items())
        yield " ".join([f"{'classes':<{first}}", *kinds])


def _told(title: str, texts: Sequence[str]) -> Iterator[str]:
    if not texts:
        return
    yield ""
    yield title
    for text in texts[:MOST_TOLD]:
        yield f"  - {text}"
    if len(texts) > MOST_TOLD:
        yield f"  and {len(texts) - MOST_TOLD} more"


_CODES = {"wrong": 2, "unreachable": 4}
"""Of the exit; what is wrong goes before what is away."""


def doctor_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. 2 when anything is wrong, else 4 when a service is unreachable."""
    asked = Asked(find_home(arguments.home), address_of(arguments.address), arguments.nodes)
    found = []
    subject = None
    for check, finding in _findings(_chosen(arguments.only), asked):
        found.append((check, finding))
        if arguments.json:
            continue
        if check.subject != subject:
            subject = check.subject
            say(SUBJECTS[subject])
        for line in _finding_lines(finding):
            say(line)
    levels = [finding.level for _, finding in found]
    say(json.dumps(_plain(found), indent=1) if arguments.json else _sum(levels))
    return next((code for level, code in _CODES.items() if level in levels), 0)


def _findings(checks: Sequence[Check], asked: Asked) -> Iterator[tuple[Check, Finding]]:
    """One after another: each imports what it needs, and they would only wait for each other."""
    shut = set()
    for check in checks:
        if check.subject in shut:
            continue
        for finding in examine(check, asked):
            yield check, finding
            if check.first and finding.level in _CODES:
                shut.add(check.subject)


def _chosen(only: Sequence[str]) -> list[Check]:
    """The checks of these subjects and names, or all. Raises RequestError for an unknown one."""
    known = [*SUBJECTS, *(check.name for check in CHECKS)]
    for name in only:
        if name not in known:
            raise RequestError(unknown("check", name, known))
    return [check for check in CHECKS if not only or {check.subject, check.name} & {*only}]


def _finding_lines(finding: Finding) -> Iterator[str]:
    """`  warning  told`, and what to do below it."""
    yield f"  {finding.level:<11}  {finding.told}"
    if finding.todo:
        yield f"  {'':<11}  -> {finding.todo}"


def _sum(levels: Sequence[str]) -> str:
    parts = []
    for level, one, several in _WORDS:
        count = levels.count(level)
        if count:
            parts.append(f"{count} {one if count == 1 else several}")
    return f"{', '.join(parts)}." if parts else "All is well."


_WORDS = (
    ("wrong", "thing is wrong", "things are wrong"),
    ("unreachable", "service does not answer", "services do not answer"),
    ("warning", "warning", "warnings"),
)


def _plain(found: Sequence[tuple[Check, Finding]]) -> Mapping[str, Any]:
    return {
        "checks": [
            {"check": check.name, "level": one.level, "told": one.told, "todo": one.todo}
            for check, one in found
        ]
    }


def schema_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    schema = family_schema() if arguments.family else sweep_schema()
    say(json.dumps(schema, indent=1))
    return 0


def sync_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises ServiceUnreachable when the server does not answer."""
    home = find_home(arguments.home)
    for name in arguments.sweeps:
        sweep_folder(home, name)
    names = dict.fromkeys(arguments.sweeps) or sweep_names(home)
    place = resolve_location(home.path)
    driven = {name: driver for name in names if (driver := holder(home.sweep(name))) is not None}
    for name, driver in driven.items():
        say(f"{name} is being run by {driver}, which sends its runs.")
    sent = 0
    with closing(open_store(home.path)) as store:
        for name in names:
            if name not in driven:
                sent += _sync(home, name, store, say)
    if not sent and not driven:
        say(f"{without_password(place.uri)} has every run as it is here.")
    return 0


def _sync(home: Home, name: str, store: Tracker, say: Say) -> int:
    try:
        projection = project(home, name, store)
    except ServiceUnreachable as away:
        raise ServiceUnreachable(
            f"{away}; the runs of {name} are not all sent. Nothing is lost: sync again when the "
            "server answers"
        ) from away
    if projection.sent:
        say(f"{name}: {projection.sent} run{'' if projection.sent == 1 else 's'} sent.")
    for (digest, what), reason in projection.refused.items():
        say(f"{name}: {what} of run {digest[:12] or '(the sweep)'} was refused: {reason}")
    return projection.sent


@dataclass(frozen=True)
class Waste:
    """Something that may go."""

    path: str
    reason: str
    bytes: int


def clean_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    found = list(waste(home)) if home.path.exists() else []
    if arguments.yes:
        for item in found:
            _remove(Path(item.path))
    total = sum(item.bytes for item in found)
    if arguments.json:
        told = {"removed": arguments.yes, "bytes": total, "items": [asdict(i) for i in found]}
        say(json.dumps(told, indent=1))
        return 0
    for item in found:
        say(f"{item.bytes / 2**20:8.1f} MB  {item.path}  ({item.reason})")
    verb = "removed" if arguments.yes else "can go; --yes removes it"
    say(f"{total / 2**20:.1f} MB {verb}" if found else "Nothing to remove.")
    return 0


def waste(home: Home) -> Iterator[Waste]:
    """What can go, never of a run that somebody works on."""
    runs = Runs(home.runs)
    used = set(_used(home))
    for digest in runs.digests():
        state = runs.read(digest)
        folder = runs.folder(digest)
        if state is None or state.is_live:
            continue
        if digest not in used:
            yield _waste(folder, "a run that no sweep uses")
        elif state.state == "done" and (folder / OPTIMISER_STATE).exists():
            yield _waste(folder / OPTIMISER_STATE, "state of a run that is done")
    for aside in sorted(home.runs.glob(".*.before")):
        owner = runs.read(aside.name.removeprefix(".").removesuffix(".before"))
        if owner is None or not owner.is_live:
            yield _waste(aside, "an earlier result of a run that was trained again")


def _used(home: Home) -> Iterator[str]:
    """Yield the runs of every generation of every sweep."""
    for name in sweep_names(home):
        for ledger in read_generations(home.sweep(name) / LEDGER_FILE):
            for setting in ledger.settings():
                yield from setting.runs.values()
            for trial in ledger.proposals():
                yield from trial.runs.values()


def _waste(path: Path, reason: str) -> Waste:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Waste(str(path), reason, sum(file.stat().st_size for file in files))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def ui_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError where strangers would be let in unasked."""
    home = find_home(arguments.home)
    place = resolve_location(home.path)
    if is_server(place.named):
        _check_only_named(arguments, without_password(place.named))
    elif not home.path.exists():
        raise RequestError(f"there is no home {home.path} yet; run a sweep first, or name --home")
    _check(arguments)
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
    say(f"MLflow shows experiment {place.experiment} at {server.address}")
    if server.process is None:
        return 0
    if users is not None:
        say(users.note)
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


def _check_only_named(arguments: argparse.Namespace, address: str) -> None:
    if arguments.auth or arguments.allowed_hosts or arguments.static_prefix:
        raise RequestError(
            f"MLFLOW_TRACKING_URI names a server, {address}, and ui then starts none: users and "
            "names are that server's; unset it to serve the home's own runs"
        )


def _password() -> str | None:
    """Of the first user, typed twice; None where nobody sits before a terminal."""
    if not sys.stdin.isatty():
        return None
    first = getpass.getpass(f"A password for {ADMIN}, the first user (none: one is made up): ")
    if first and getpass.getpass("Again: ") != first:
        raise RequestError("the two passwords differ")
    return first or None
