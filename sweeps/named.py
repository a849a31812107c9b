"""A sweep of a home by its name."""

from __future__ import annotations

from sweeps.home import Home
from sweeps.known import no_such_sweep
from sweeps.ledger import Ledger
from sweeps.mirror import Kept, view


def look(home: Home, name: str) -> Kept:
    """The sweep for who only reads: its mirror, or its ledger where there is none.

    Raises RequestError with the nearest name when there is no such sweep.
    """
    return view(home, name) or find(home, name)


def find(home: Home, name: str) -> Ledger:
    """The ledger of the sweep. Raises RequestError with the nearest name when there is none."""
    ledger = Ledger.newest(home, name)
    if ledger is not None:
        return ledger
    raise no_such_sweep(home, name)
