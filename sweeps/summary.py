"""What `list` shows of each sweep, kept by its driver so that looking opens no database."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from carft_core.files import read_json, write_json
from sweeps.claim import holder
from sweeps.home import Home
from sweeps.ledger import Ledger

FILE = "summary.json"
SHARE = 0.01
"""Of a driver's time that may go into summaries while trials end."""
State = Literal["running", "done", "interrupted", "failed"]


class Summary:
    """Writes the summary of a running sweep, less often the longer it takes."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder, self._ledger = folder, ledger
        self._next = 0.0

    def told(self) -> None:
        """A trial has ended: write, unless that was done a moment ago."""
        began = time.monotonic()
        if began >= self._next:
            write(self._folder, self._ledger, "running")
            self._next = began + (time.monotonic() - began) / SHARE


def write(folder: Path, ledger: Ledger, state: State) -> None:
    """Write the state of a sweep; times in seconds since the Unix epoch."""
    spec, trials = ledger.spec, ledger.trials()
    goal = goals(spec)[0]
    sign = 1 if goal["goal"] == "maximize" else -1
    complete = [trial for trial in trials if trial.value is not None]
    # Values on several tasks are not compared with each other.
    rivals = [] if spec.get("tasks") else complete
    best = max(rivals, key=lambda trial: sign * (trial.value or 0.0), default=None)
    states = Counter(trial.state for trial in trials)
    write_json(
        folder / FILE,
        {
            "name": ledger.name,
            "description": spec["description"],
            "state": state,
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
        },
    )


def goals(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What a sweep's trials are valued by, one or several: `name`, `goal`, `merge` of each."""
    found: Sequence[Mapping[str, Any]] = spec.get("metrics") or [spec["metric"]]
    return found


def read_all(home: Home) -> list[Mapping[str, Any]]:
    """The summary of every sweep of a home by name; one whose driver died is interrupted."""
    found: list[Mapping[str, Any]] = []
    for file in sorted(home.sweeps.glob(f"*/{FILE}")):
        summary: dict[str, Any] = read_json(file)
        if summary["state"] == "running" and holder(file.parent) is None:
            summary["state"] = "interrupted"
        found.append(summary)
    return found
