"""What a driver costs whose runs all report once a second, and how late MLflow's server shows it.

    python -m benchmarks.tracking_load [--runs 100] [--seconds 60] [--backend postgres]
        [--server URL] [--delay 0.2 --busy-every 50] [--recovery 30] [--all] [--json]

Starts a real MLflow server, on SQLite unless `--backend` names a database (`postgres`: one of its
own, of the system's package), and a sweep of so many runs that tells its tracker as the driver
does. A simulated run is a dictionary of random numbers a second; what drawing them takes is not
counted. In the end the server is asked for every point. `--delay` (seconds) and `--busy-every`
(429 to one of so many requests) hold while runs report; for `--recovery` seconds they go on
reporting to a server that is quick again. `--all` measures a quick server and three such ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.simulated_runs import measure
from carft_sweep.tracking.ui_server import serve

CASES: Mapping[str, Mapping[str, float]] = {
    "quick": {},
    "0.2 s later": {"delay": 0.2, "recovery": 30},
    "429 to one in 20": {"busy_every": 20, "recovery": 30},
    "1 s later": {"delay": 1, "recovery": 30},
}


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--backend", help="a database's URL, or `postgres`; without: SQLite")
    parser.add_argument("--server", help="an MLflow server that runs already")
    parser.add_argument("--delay", type=float, default=0, help="of each answer, in seconds")
    parser.add_argument("--busy-every", type=int, default=0, help="429 to one of so many requests")
    parser.add_argument("--recovery", type=float, default=0, help="seconds with a quick server")
    parser.add_argument("--patience", type=float, default=600, help="until all is delivered")
    parser.add_argument("--all", action="store_true", help="four servers, from quick to slow")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    chosen = parser.parse_args()
    asked = {"delay": chosen.delay, "busy_every": chosen.busy_every, "recovery": chosen.recovery}
    cases = CASES if chosen.all else {"measured": asked}
    told = {name: _measured(chosen, case) for name, case in cases.items()}
    sys.stdout.write(f"{json.dumps(told, indent=1)}\n" if chosen.json else _table(told))
    return 0 if all(case["wrong points"] == 0 for case in told.values()) else 1


def _measured(chosen: argparse.Namespace, case: Mapping[str, float]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, _server(chosen, Path(name)) as (address, session):
        load = os.getloadavg()[0]
        told = measure(
            address,
            Path(name) / "home",
            runs=chosen.runs,
            seconds=chosen.seconds,
            trouble={key: number for key, number in case.items() if key != "recovery"},
            recovery=case.get("recovery", 0),
            patience=chosen.patience,
            session=session,
        )
    kind = "a server given" if chosen.server else (chosen.backend or "sqlite").partition(":")[0]
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}"
    load_told = f"{load:.1f} to {os.getloadavg()[0]:.1f}"
    return {
        "server": kind,
        "machine": machine,
        "its load": load_told,
        "day": time.strftime("%Y-%m-%d"),
        **told,
    }


@contextmanager
def _server(chosen: argparse.Namespace, folder: Path) -> Iterator[tuple[str, int | None]]:
    """The server's address, and the session of its processes."""
    if chosen.server:
        yield chosen.server, None
        return
    with ExitStack() as stack:
        backend = chosen.backend or f"sqlite:///{folder / 'mlflow.db'}"
        if backend == "postgres":
            from tests.services import postgres

            database = stack.enter_context(postgres.running())
            backend = database.url(database.new_database())
        running = serve(backend, folder / "artifacts", port=0)
        stack.callback(running.stop)
        assert running.process is not None
        yield running.address, running.process.pid


def _table(told: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a column for each case."""
    names = dict.fromkeys(key for case in told.values() for key in case)
    rows = [["", *told], ["---"] * (len(told) + 1)]
    rows += [[name, *(_shown(case.get(name)) for case in told.values())] for name in names]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _shown(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, Mapping):
        return ", ".join(f"{name} {number}" for name, number in cell.items())
    return str(cell)


if __name__ == "__main__":
    raise SystemExit(main())
