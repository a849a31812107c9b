"""The summary of a sweep: what `list` shows, derived from its ledger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.carft_core.run_files import FINITE, check_time
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.claim import holder
from carft_sweep.sweeps.ledger.trials import Ledger, damage_named, newest_generation, sweep_names

SUMMARY_FILE = "summary.json"
SHARE = 0.01
"""Of a driver's time that may go into summaries while trials end."""
OUTCOME = "outcome"
"""The fact how the sweep stands: `state`, and `broken` where it was given up, which says why."""
State = Literal["running", "done", "interrupted", "failed"]


@dataclass(frozen=True)
class _Best:
    __pydantic_config__: ClassVar[Any] = FINITE

    value: float
    trial: int
    params: Mapping[str, Any]


@dataclass(frozen=True)
class _Counts:
    asked: int | None
    complete: int
    failed: int
    pruned: int


@dataclass(frozen=True)
class _Kept:
    """What the file holds."""

    __pydantic_config__: ClassVar[Any] = FINITE

    name: str
    description: str
    state: State
    generation: int
    metric: str
    trials: _Counts
    best: _Best | None
    updated: float

    def __post_init__(self) -> None:
        check_time(self.updated)


class Summary:
    """Writes the summary of a running sweep, less often the longer it takes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._next = 0.0

    def update(self) -> None:
        """Write it, unless that was done a moment ago."""
        began = time.monotonic()
        if began >= self._next:
            write_summary(self._ledger)
            self._next = began + (time.monotonic() - began) / SHARE


def write_summary(ledger: Ledger) -> None:
    """Write how a sweep stands; times in seconds since the Unix epoch."""
    write_json(ledger.file.parent / SUMMARY_FILE, summary_of(ledger))


def summary_of(ledger: Ledger) -> dict[str, Any]:
    """Derive the summary from the ledger. Raises RequestError where its sweep lacks something."""
    spec, trials = ledger.spec, ledger.trials()
    with damage_named(ledger.file):
        goal, description = goals(spec)[0], spec["description"]
    sign = 1 if goal["goal"] == "maximize" else -1
    complete = [trial for trial in trials if trial.value is not None]
    # Values on several tasks are not compared with each other.
    rivals = [] if spec.get("tasks") else complete
    best = max(rivals, key=lambda trial: sign * (trial.value or 0.0), default=None)
    states = Counter(trial.state for trial in trials)
    return {
        "name": ledger.name,
        "description": description,
        "state": ledger.recall(OUTCOME, {"state": "running"})["state"],
        "generation": ledger.generation,
        "metric": goal["name"],
        "trials": {
            "asked": ledger.recall("trial_count"),
            "complete": len(complete),
            "failed": states["failed"],
            "pruned": states["pruned"],
        },
        "best": None
        if best is None
        else {"value": best.value, "trial": best.number, "params": dict(best.params)},
        "updated": time.time(),
    }


def goals(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return what trials are valued by, one or several: `name`, `goal`, `merge` of each."""
    metrics: Sequence[Mapping[str, Any]] = spec.get("metrics") or [spec["metric"]]
    return metrics


def read_summaries(home: Home) -> list[dict[str, Any]]:
    """Read the summary of every sweep of a home, by name; interrupted is whose driver died."""
    summaries = (_read(home, name) for name in sweep_names(home))
    return [summary for summary in summaries if summary is not None]


def _read(home: Home, name: str) -> dict[str, Any] | None:
    folder: Path = home.sweep(name)
    summary: dict[str, Any] | None = read_json(folder / SUMMARY_FILE, _Kept)
    if summary is None:
        ledger = newest_generation(home, name)
        if ledger is None:
            return None
        summary = summary_of(ledger)
    summary["name"] = name  # the folder's, whatever is in its file
    if summary["state"] == "running" and holder(folder) is None:
        summary["state"] = "interrupted"
    return summary
