"""Whether a driver stays as it is over thousands of trials: memory, open files, threads, pace.

    python -m benchmarks.chaos.long_sweep [--trials 5000] [--engine ray] [--json FILE]
                                          [--home FOLDER]

Runs one sweep of simulated training through the command line, some percent of whose runs fail in
several ways, and looks at the driver's process every few seconds. Prints a row for each tenth of
the trials.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.chain_core import PAUSE
from benchmarks.chaos.planted_faults import PLAN
from benchmarks.machine import usage_of
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.trials import LEDGER_FILE, find_ledger

NAME = "long"
RATES = {"nan": 0.02, "crash": 0.02, "cuda-memory": 0.02, "killed": 0.005, "data": 0.005}
"""Shares of the runs; what crashes, is killed or has too little memory succeeds when it is tried
again.
"""
LOOK = 2.0
"""Seconds between two looks."""
ROWS = 10
_MB = 2**20


@dataclass(frozen=True)
class Look:
    """The driver's process at one moment."""

    seconds: float
    """Since its start."""
    trials: int
    """How many have ended."""
    rss_mb: float
    files: int
    threads: int
    cpu_s: float
    """Of the driver itself, since its start."""


def main() -> int:
    """Run the sweep, watch it, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--engine", choices=["local", "ray"], default="ray")
    parser.add_argument("--json", type=Path, help="write every look here")
    parser.add_argument("--home", type=Path, help="make the home here, and leave it")
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="carft-long-")) / "home"
    try:
        looks, code, said = drive(home, options.trials, options.engine)
        result = summarise(home, looks, code, said)
    finally:
        if options.home is None:
            shutil.rmtree(home.parent)
    if options.json:
        options.json.write_text(
            json.dumps({**result, "looks": [asdict(look) for look in looks]}, indent=1)
        )
    sys.stdout.write(_table(result))
    return 0


def drive(home: Path, trials: int, engine: str) -> tuple[list[Look], int, str]:
    """Run the sweep to its end; every look, the exit code, and the last that it printed."""
    home.mkdir(parents=True)
    sweep, plan, output = (home / name for name in ("long.yaml", "plan.json", "output.txt"))
    sweep.write_text(json.dumps(_sweep(trials, engine)))
    plan.write_text(json.dumps({"rates": RATES}))
    command = ["-m", "benchmarks.chaos.planted_faults", "run", str(sweep), "--home", str(home)]
    began, looks = time.monotonic(), []
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, PLAN: str(plan), PAUSE: "0"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        count = _TrialCount(home / "sweeps" / NAME / LEDGER_FILE)
        while process.poll() is None:
            try:
                looks.append(_look(process.pid, time.monotonic() - began, count.update()))
            except (FileNotFoundError, ProcessLookupError):
                break  # it has just ended
            time.sleep(LOOK)
        code = process.wait()
    return looks, code, "\n".join(output.read_text().splitlines()[-20:])


def summarise(home: Path, looks: Sequence[Look], code: int, said: str) -> dict[str, Any]:
    """Return the rows, and how the trials ended."""
    ledger = find_ledger(Home(home), NAME)
    states = Counter(trial.state for trial in ledger.trials())
    reasons = Counter(trial.reason["kind"] for trial in ledger.trials() if trial.reason)
    return {
        "exit code": code,
        "states": dict(states),
        "failed by": dict(reasons),
        "rows": list(_rows(looks)),
        "last words": said,
    }


def _rows(looks: Sequence[Look]) -> Iterator[Mapping[str, float]]:
    """Yield the driver at each tenth of the trials, with the pace since the row before."""
    working = [look for look in looks if look.trials]
    last = working[-1].trials if working else 0
    before = working[0] if working else None
    for share in range(ROWS + 1):
        due = max(1, last * share // ROWS)
        look = next((look for look in working if look.trials >= due), None)
        if look is None or before is None:
            continue
        trials = look.trials - before.trials
        yield {
            "trials": look.trials,
            "minutes": round(look.seconds / 60, 1),
            "rss_mb": round(look.rss_mb),
            "files": look.files,
            "threads": look.threads,
            "s_per_trial": round((look.seconds - before.seconds) / trials, 3) if trials else 0.0,
            "cpu_s_per_trial": round((look.cpu_s - before.cpu_s) / trials, 3) if trials else 0.0,
        }
        before = look


class _TrialCount:
    """Counter of the trials that have ended, by what is new in a ledger file."""

    def __init__(self, ledger: Path) -> None:
        self._ledger, self._offset, self._count = ledger, 0, 0

    def update(self) -> int:
        """Read on, and return the count."""
        if not self._ledger.exists():
            return 0
        with self._ledger.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._count += b'"ended":' in line and line.startswith(b'{"trial"')
        return self._count


def _look(pid: int, seconds: float, trials: int) -> Look:
    usage, files = usage_of(pid), len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Look(round(seconds, 1), trials, usage.memory / _MB, files, usage.threads, usage.cpu_s)


def _sweep(trials: int, engine: str) -> dict[str, Any]:
    return {
        "name": NAME,
        "method": "random",
        "run_cap": trials,
        "parameters": {
            "algorithm.kl_weight": {"distribution": "log_uniform_values", "min": 0.01, "max": 10}
        },
        "seeds": [0],
        "baselines": ["zero_shot", "fine_tune"],
        "engine": engine,
        "resources": {"cpus": 1},
        "breaker": 0,
        "report": {"page": False, "model": False},
        "trial": {"algorithm": {"name": "car_ft"}, "optim": {"epochs": 3}, "device": "cpu"},
    }


def _table(result: Mapping[str, Any]) -> str:
    names = ("trials", "minutes", "rss_mb", "files", "threads", "s_per_trial", "cpu_s_per_trial")
    lines = ["".join(f"{name:>17}" for name in names)]
    lines += ["".join(f"{row[name]:>17}" for name in names) for row in result["rows"]]
    states = f"exit code {result['exit code']}; {result['states']}; failed by {result['failed by']}"
    return "\n".join([*lines, states, result["last words"]]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
