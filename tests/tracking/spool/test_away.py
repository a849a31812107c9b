"""A sweep goes on while the store is away, and nothing that it tells is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.tracking.spool.troubled import CHILD, PARENT, RUN, SWEEP, Troubled, loss
from tracking.errors import TrackingError
from tracking.journal import sweeps_behind
from tracking.spool import Spool


def test_the_sweep_goes_on_while_the_store_is_away(spool: Spool, store: Troubled) -> None:
    away = True
    store.away = lambda: away
    start = time.monotonic()
    spool.open(PARENT)
    spool.open(CHILD)
    for step in range(100):
        spool.metrics(RUN, [loss(step)])
    assert time.monotonic() - start < 5
    assert not spool.flush(0.3)
    assert spool.behind() == 102
    assert spool.last_error == "away"
    assert store.runs == {}
    away = False
    assert spool.flush(10)
    assert not spool.last_error
    assert spool.behind() == 0
    assert len(store.runs[RUN].history["train/loss"]) == 100


def test_waiting_for_a_store_that_is_away_does_not_spin(folder: Path, store: Troubled) -> None:
    tries = 0

    def away() -> bool:
        nonlocal tries
        tries += 1
        return True

    store.away = away
    spool = Spool(store, folder, pace=0.01, longest_pause=60)
    spool.open(PARENT)
    time.sleep(0.5)
    assert 1 <= tries <= 7  # 0.02, 0.04, ... doubled each time
    assert not spool.flush(0.6)
    assert tries <= 12
    spool.close()


def test_closing_tries_once_and_keeps_the_rest(folder: Path, store: Troubled) -> None:
    store.away = lambda: True
    spool = Spool(store, folder, pace=30)
    spool.open(PARENT)
    start = time.monotonic()
    spool.close()
    spool.close()
    assert time.monotonic() - start < 5
    assert store.closed
    assert sweeps_behind(folder) == ["s"]
    with pytest.raises(TrackingError, match="closed"):
        spool.open(PARENT)


def test_closing_delivers_what_was_told_a_moment_ago(folder: Path, store: Troubled) -> None:
    spool = Spool(store, folder, pace=30)
    spool.open(PARENT)
    spool.close()
    assert SWEEP in store.runs
