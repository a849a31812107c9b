"""`carft-sweep set` and `pause`: change what a running sweep may run, from any host."""

from __future__ import annotations

import argparse

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.home import find_home
from carft_sweep.sweeps.ledger.claim import set_limits
from carft_sweep.sweeps.ledger.ledger import sweep_folder
from carft_sweep.tracking.program import command


def set_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the `set` command and return its exit code. Raises RequestError for another key."""
    key, _, text = arguments.change.partition("=")
    if key != "parallel" or not text.isdecimal() or int(text) < 1:
        raise RequestError(
            f"{arguments.change}: of a running sweep parallel=N is set, N from 1; other keys are "
            "changed in the file, and taken up by `run`"
        )
    name = arguments.sweep
    return _request(arguments, emit, f"at most {text} runs of {name} at once", parallel=int(text))


def pause_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the `pause` command and return its exit code."""
    resume = command("resume", arguments.sweep, arguments.home)
    text = f"no run of {arguments.sweep} begins until {resume}; what runs goes on to its end"
    return _request(arguments, emit, text, is_paused=True)


def _request(arguments: argparse.Namespace, emit: Emit, text: str, **changes: object) -> int:
    home = find_home(arguments.home, trust=arguments.trust_home)
    driver = set_limits(sweep_folder(home, arguments.sweep), **changes)
    is_running = driver is not None
    emit(f"Asked {driver}: {text}." if is_running else f"{arguments.sweep} is not running.")
    return 0
