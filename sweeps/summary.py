"""What `list` shows of each sweep, kept by its driver so that looking opens no database."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from carft_core.files import read_json, write_json
from sweeps.claim import holder
from sweeps.home import Home
from sweeps.ledger import Ledger

FILE = "summary.json"
State = Literal["running", "done", "interrupted", "failed"]


def write(folder: Path, ledger: Ledger, state: State) -> None:
    """Write the state of a sweep; times in seconds since the Unix epoch."""
    spec, trials = ledger.spec, ledger.trials()
    sign = 1 if spec["metric"]["goal"] == "maximize" else -1
    complete = [trial for trial in trials if trial.value is not None]
    best = max(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)
    write_json(
        folder / FILE,
        {
            "name": ledger.name,
            "description": spec["description"],
            "state": state,
            "generation": ledger.generation,
            "metric": spec["metric"]["name"],
            "trials": {
                "asked": ledger.recall("trial_count"),
                "complete": len(complete),
                "failed": sum(trial.state == "failed" for trial in trials),
            },
            "best": None
            if best is None
            else {"value": best.value, "trial": best.number, "params": dict(best.params)},
            "updated": time.time(),
        },
    )


def read_all(home: Home) -> list[Mapping[str, Any]]:
    """The summary of every sweep of a home by name; one whose driver died is interrupted."""
    found: list[Mapping[str, Any]] = []
    for file in sorted(home.sweeps.glob(f"*/{FILE}")):
        summary: dict[str, Any] = read_json(file)
        if summary["state"] == "running" and holder(file.parent) is None:
            summary["state"] = "interrupted"
        found.append(summary)
    return found
