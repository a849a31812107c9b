"""`carft-sweep stop`: end a running sweep after its epochs, or at once."""

from __future__ import annotations

import argparse
import time

from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.status import sweep_status
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.claim import FILE, ask_to_stop, holder
from carft_sweep.sweeps.ledger.ledger import sweep_folder
from carft_sweep.tracking.program import command

LOOK = 0.25
"""Seconds between two looks at whether the driver has gone."""
DEAF = 15.0
"""Seconds after which a request that nobody has taken is reported."""


def stop_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the `stop` command and return its exit code."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    folder = sweep_folder(home, arguments.sweep)
    driver = ask_to_stop(folder, arguments.now)
    if driver is None:
        emit(f"{arguments.sweep} is not running.")
        return 0
    when = "at once" if arguments.now else "after the epoch"
    emit(f"Asked {driver} to stop {when}.")
    if arguments.no_wait:
        return 0
    since, told_deaf = time.monotonic(), False
    waits_for = _what_runs(home, arguments.sweep)
    if waits_for:
        emit(f"Waiting for {waits_for}.")
    while (current := holder(folder)) is not None and current.owner == driver.owner:
        if not told_deaf and time.monotonic() - since > DEAF and (folder / FILE).exists():
            told_deaf = True
            emit(
                "The driver has not responded; it may be hanging. Ctrl-C stops waiting (the "
                f"request stays). To force it, run `kill {driver.pid}` on {driver.host}."
            )
        time.sleep(LOOK)
    if sweep_status(home, arguments.sweep).state == "done":
        result = command("compare", arguments.sweep, arguments.home)
        emit(f"{arguments.sweep} has finished meanwhile. The result: {result}")
    else:
        resume = command("resume", arguments.sweep, arguments.home)
        emit(f"{arguments.sweep} has stopped. To go on: {resume}")
    return 0


def _what_runs(home: Home, name: str) -> str:
    running = sweep_status(home, name).running
    words = []
    for run in running[:3]:
        at = "" if run.epoch is None else f" (epoch {run.epoch}/{run.epochs} is done)"
        words.append(f"{run.label}{at}")
    more = f" and {len(running) - 3} more" if len(running) > 3 else ""
    return ", ".join(words) + more
