"""A sweep of a home by its name."""

from __future__ import annotations

import difflib

from carft_core.errors import RequestError
from sweeps.home import Home
from sweeps.ledger import Ledger
from sweeps.summary import read_all


def find(home: Home, name: str) -> Ledger:
    """The ledger of the sweep. Raises RequestError with the nearest name when there is none."""
    ledger = Ledger.newest(home, name)
    if ledger is not None:
        return ledger
    known = [str(summary["name"]) for summary in read_all(home)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise RequestError(
        f"no sweep {name!r} in {home.path}{hint} Known: {', '.join(known) or 'none'}."
    )
