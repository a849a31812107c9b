"""The commands that control a running sweep, from any host: stop, set, pause."""

from __future__ import annotations

import argparse
import time

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.status import sweep_status
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.claim import FILE, ask_to_stop, holder, set_limits
from carft_sweep.sweeps.ledger.ledger import sweep_folder
from carft_sweep.tracking.errors import counted
from carft_sweep.tracking.program import command

LOOK = 0.25
"""Seconds between two looks at whether the driver has gone."""
DEAF = 15.0
"""Seconds after which a request that nobody has taken is reported."""


def stop_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `stop` command."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    folder = sweep_folder(home, arguments.sweep)
    driver = ask_to_stop(folder, arguments.now)
    if driver is None:
        emit(f"{arguments.sweep} is not running.")
        return
    when = "at once" if arguments.now else "after the epoch"
    emit(f"Asked {driver} to stop {when}.")
    if arguments.no_wait:
        return
    since, told_deaf = time.monotonic(), False
    waits_for = _what_runs(home, arguments.sweep)
    if waits_for:
        sooner = "" if arguments.now else "; with --now it is not waited for"
        emit(f"Waiting for {waits_for}{sooner}.")
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


def _what_runs(home: Home, name: str) -> str:
    running = sweep_status(home, name).running
    words = []
    for run in running[:3]:
        at = "" if run.epoch is None else f" (epoch {run.epoch}/{run.epochs} is done)"
        words.append(f"{run.label}{at}")
    more = f" and {len(running) - 3} more" if len(running) > 3 else ""
    return ", ".join(words) + more


def set_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `set` command. Raises RequestError for another key."""
    key, _, text = arguments.change.partition("=")
    if key != "parallel" or not text.isdecimal() or int(text) < 1:
        raise RequestError(
            f"{arguments.change}: of a running sweep parallel=N is set, N from 1; other keys are "
            "changed in the file, and taken up by `run`"
        )
    most = f"{counted(int(text), 'run')} of {arguments.sweep} at once"
    _request(arguments, emit, f"at most {most}, and no more than it began with", parallel=int(text))


def pause_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `pause` command."""
    resume = command("resume", arguments.sweep, arguments.home)
    text = f"no run of {arguments.sweep} begins until {resume}; what runs goes on to its end"
    _request(arguments, emit, text, is_paused=True)


def _request(arguments: argparse.Namespace, emit: Emit, text: str, **changes: object) -> None:
    home = find_home(arguments.home, trust=arguments.trust_home)
    driver = set_limits(sweep_folder(home, arguments.sweep), **changes)
    is_running = driver is not None
    emit(f"Asked {driver}: {text}." if is_running else f"{arguments.sweep} is not running.")
