"""`carft-sweep sync`: deliver to the tracking server and to Optuna's study what they missed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.claim import holder
from carft_sweep.sweeps.ledger.ledger import begun_sweeps, newest_generation, sweep_folder
from carft_sweep.sweeps.ledger.optuna_copy import mend_studies
from carft_sweep.sweeps.results.export import log_missing_model
from carft_sweep.sweeps.results.sent_log import place_of
from carft_sweep.sweeps.results.sync import sync_sweep
from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable, counted
from carft_sweep.tracking.location import resolve_location, without_password
from carft_sweep.tracking.store.base import Tracker, describe
from carft_sweep.tracking.store.mlflow_store import open_store


def sync_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run `sync` and return its exit code. Raises ServiceUnreachable when the server does not
    answer."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    for name in arguments.sweeps:
        sweep_folder(home, name)
    names = dict.fromkeys(arguments.sweeps) or begun_sweeps(home)
    if not names:
        raise RequestError(f"no sweep was run in {home.path} yet: there is nothing to send")
    driven = {name: driver for name in names if (driver := holder(home.sweep(name))) is not None}
    for name, driver in driven.items():
        emit(f"{name} is being run by {driver}, which sends its runs.")
    codes = []
    for news in _sync_all(home, [name for name in names if name not in driven]):
        emit(f"{news.sweep}: {news.text}")
        codes.append(news.code)
    if not codes and not driven:
        emit(f"{without_password(resolve_location(home.path).uri)} has every run as it is here.")
    return max(codes, default=0)


_LATER = "Nothing is lost: sync again when the server answers"


def _preflight(store: Tracker) -> None:
    try:
        store.preflight()
    except AccessDenied:
        raise
    except ServiceUnreachable as away:
        raise ServiceUnreachable(f"{away}. {_LATER}") from away


class _News(NamedTuple):
    """A message on what `sync` did for a sweep, or could not do."""

    sweep: str
    text: str
    code: int = 0
    """The exit code that `sync` has for it."""


def _sync_all(home: Home, names: Sequence[str]) -> Iterator[_News]:
    experiments = {name: place_of(home, newest_generation(home, name)).experiment for name in names}
    for experiment in dict.fromkeys(experiments.values()):
        with closing(open_store(home.path, experiment=experiment)) as store:
            _preflight(store)
            for name in (name for name in names if experiments[name] == experiment):
                yield from _sync(home, name, store)
    for name in names:
        yield from _sync_study(home, name)


def _sync(home: Home, name: str, store: Tracker) -> Iterator[_News]:
    """Send all records that the tracking store lacks of a sweep; yield messages about them."""
    try:
        sync = sync_sweep(home, name, store)
    except AccessDenied:
        raise
    except ServiceUnreachable as away:
        raise ServiceUnreachable(f"{away}; the runs of {name} are not all sent. {_LATER}") from away
    if sync.sent:
        yield _News(name, f"{counted(sync.sent, 'run')} sent.")
    yield from (_News(name, note) for note in sync.notes)
    if (note := log_missing_model(home, name)) is not None:
        yield _News(name, note)
    for (run, what), reason in sync.refused.items():
        yield _News(name, f"{what} of {sync.describe(run)} was refused: {reason}")
    if sync.unlisted:
        yield _News(name, f"its files could not be listed: {sync.unlisted}")
    for run, reason in sync.unreadable.items():
        yield _News(name, f"{describe(run)} is not sent, since it cannot be read: {reason}", 1)


def _sync_study(home: Home, name: str) -> Iterator[_News]:
    """Write all trials that the Optuna studies of a sweep lack; yield messages about them."""
    try:
        count = mend_studies(home, name)
    except ServiceUnreachable as away:
        yield _News(name, f"its Optuna study is not written: {away}", 4)
    except Exception as error:  # whatever Optuna and the drivers of databases raise
        lines = str(error).splitlines() or [type(error).__name__]
        yield _News(name, f"its Optuna study is not written: {lines[0]}", 1)
    else:
        if count:
            yield _News(name, f"{counted(count, 'trial')} written to its Optuna study.")
