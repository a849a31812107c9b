"""`carft-sweep list`: the sweeps of this home."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from sweeps.home import find_home
from sweeps.summary import read_all

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    found = read_all(home)
    if arguments.json:
        say(json.dumps(found, indent=1))
        return 0
    if not found:
        say(f"No sweep was run in {home.path} yet. Try: carft-sweep run kl_weight")
        return 0
    rows = [("sweep", "state", "trials", "best", "last change"), *map(_row, found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(summary: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    trials, best = summary["trials"], summary["best"]
    counted = f"{trials['complete']}/{trials['asked']}"
    for state in ("pruned", "failed"):
        counted += f", {trials[state]} {state}" if trials.get(state) else ""
    shown = "" if best is None else f"{summary['metric']} {best['value']:.4f} {_params(best)}"
    when = datetime.fromtimestamp(summary["updated"]).astimezone().strftime("%Y-%m-%d %H:%M")
    return summary["name"], summary["state"], counted, shown.rstrip(), when


def _params(best: Mapping[str, Any]) -> str:
    return " ".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in best["params"].items())
