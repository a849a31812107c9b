"""`carft-sweep run FILE`: run a sweep, or go on with it, and end with the comparison."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable

from rich.console import Console

from sweeps.engines.base import Engine
from sweeps.engines.in_process import InProcessEngine
from sweeps.engines.local import LocalEngine
from sweeps.home import find_home
from sweeps.progress import Plain, Progress, Quiet, Shown
from sweeps.session import Ended, execute
from sweeps.spec import SweepSpec, load_spec
from tracking.report import terminal
from tracking.spool import Spool
from tracking.where import open_tracking

Say = Callable[[str], None]
PATIENCE = 30.0
"""Seconds that the end waits for the tracker to have everything."""


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    spec = load_spec(arguments.file, arguments.overrides)
    home.prepare()
    console = Console(stderr=True)
    progress = _progress(arguments, console)
    tracker = open_tracking(home.path)
    try:
        ended = execute(
            spec,
            home,
            _engine(arguments, spec),
            tracker,
            progress,
            fresh=arguments.fresh,
            claimed=functools.partial(tracker.take_up, spec.name),
        )
        progress.close()
        _tell(ended, arguments, say)
        tracker.flush(PATIENCE)
    finally:
        progress.close()
        _close(tracker, console)
    if ended.interrupted:
        console.print(_how_to_go_on(arguments), highlight=False, markup=False, soft_wrap=True)
    return ended.exit_code


def _engine(arguments: argparse.Namespace, spec: SweepSpec) -> Engine:
    if arguments.in_process:
        return InProcessEngine()
    return LocalEngine(timeout=arguments.timeout, threads=spec.resources.cpus)


def _progress(arguments: argparse.Namespace, console: Console) -> Progress:
    def line(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    if arguments.quiet:
        return Quiet(line)
    if console.is_terminal and not arguments.in_process:
        return Shown(console)
    return Plain(line)


def _tell(ended: Ended, arguments: argparse.Namespace, say: Say) -> None:
    if arguments.json:
        say(json.dumps(ended.comparison.as_dict(), indent=1, allow_nan=False))
        return
    output = Console()
    if ended.done and not ended.interrupted:
        say("")
        text = terminal(ended.comparison, width=output.width, colour=output.is_terminal)
        say(text.rstrip())
    if ended.failures:
        say(f"{len(ended.failures)} runs failed. `carft-sweep show {ended.comparison.sweep}` tells")
        say(f"of each; the first: {ended.failures[0]}")


def _close(tracker: Spool, console: Console) -> None:
    behind, error = tracker.behind(), tracker.last_error
    tracker.close()
    if behind:
        console.print(
            f"{behind} records still wait for the tracking server ({error or 'slow'}); "
            "nothing is lost, the next run delivers them",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    words = ["carft-sweep", "run", arguments.file]
    words += ["--home", arguments.home] if arguments.home else []
    for override in arguments.overrides:
        words += ["--set", override]
    return f"Interrupted. To go on: {' '.join(words)}"
