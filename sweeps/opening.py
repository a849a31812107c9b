"""The generation in which a sweep goes on: the newest one, extended, or a new one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeps.difference import changes, effect
from sweeps.home import Home
from sweeps.ledger import Ledger, Trial

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec


@dataclass(frozen=True)
class Opening:
    """A sweep's ledger and what is to be said of how it was opened."""

    ledger: Ledger
    notes: tuple[str, ...]
    carried: tuple[Mapping[str, Any], ...] = ()
    """Points of an earlier generation that are proposed again before anything new."""


def open_ledger(
    home: Home, spec: SweepSpec, *, is_stale: Callable[[Trial], bool], fresh: bool = False
) -> Opening:
    """Find or begin the generation that fits a sweep.

    `is_stale` says whether a trial's runs are others than the file asks for now, because code,
    model or data changed. `fresh` begins anew in any case.
    """
    plain = json.loads(json.dumps(spec.as_dict()))
    newest = Ledger.newest(home, spec.name)
    if newest is None:
        return Opening(_create(home, spec, 1, plain), ())
    newest.reconcile()
    found = changes(newest.spec, plain)
    outcome = effect(found)
    notes = tuple(str(change) for change in found)
    number = newest.generation + 1
    if outcome == "anew" or fresh:
        head = f"the sweep begins anew as generation {number}; equal runs are kept"
        if fresh:
            head = f"the sweep begins anew as generation {number}; every run is trained again"
        return Opening(_create(home, spec, number, plain), (head, *notes))
    if outcome == "told again":
        carried = tuple(trial.params for trial in newest.trials())
        head = f"the sweep is extended (generation {number}); its points and runs are kept"
        return Opening(_create(home, spec, number, plain), (head, *notes), carried)
    if any(is_stale(trial) for trial in newest.trials()):
        head = (
            "code, model, data or what runs compute on changed: the sweep begins anew as "
            f"generation {number}"
        )
        return Opening(_create(home, spec, number, plain), (head, *notes))
    if outcome == "goes on":
        newest.extend(plain)
        return Opening(newest, ("the sweep is extended; its trials are kept", *notes))
    return Opening(newest, ())


def _create(home: Home, spec: SweepSpec, generation: int, plain: Mapping[str, Any]) -> Ledger:
    from sweeps.studies import generations, storage

    # A generation whose creation was cut off is left behind.
    number = max([generation, *(n + 1 for n in generations(storage(home), home, spec.name))])
    goals = [metric.goal for metric in spec.goals]
    return Ledger.create(home, spec.name, number, goals=goals, spec=plain)
