"""Drivers that die where a test wants it, as a kill would end them: nothing is tidied up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from carft_sweep.sweeps.ledger.ledger import Ledger
from carft_sweep.sweeps.ledger.runs import RunState, RunStore
from tests.sweeps.conftest import ToySweep


class Crash(BaseException):
    """The driver dies here."""


@contextmanager
def dying(verb: str, *, before: bool = False) -> Iterator[None]:
    """The driver within dies behind its first `Ledger.verb`, or in the place of it."""
    real = getattr(Ledger, verb)

    def last(self: Ledger, *told: Any, **named: Any) -> None:
        if not before:
            real(self, *told, **named)
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, verb, last)
        with pytest.raises(Crash):
            yield


def state_of(toy: ToySweep, digest: str) -> RunState:
    """What is kept of a run that has begun."""
    state = RunStore(toy.home.runs).read(digest)
    assert state is not None
    return state
