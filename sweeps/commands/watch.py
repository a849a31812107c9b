"""`carft-sweep watch SWEEP`: how a sweep stands, from another terminal, until it ends."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps.home import find_home
from sweeps.known import command
from sweeps.live import FailedRun, RunningRun, Seen, see
from sweeps.progress import duration
from tracking.records import setting

Say = Callable[[str], None]
PLAIN_WIDTH = 200


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Ctrl-C ends it, and leaves the sweep alone."""
    home = find_home(arguments.home)
    seen = see(home, arguments.sweep)
    console = Console()
    if arguments.once or not console.is_terminal:
        say(as_text(seen))
        return 0
    try:
        with Live(render(seen), console=console, auto_refresh=False) as live:
            while seen.driver is not None:
                time.sleep(arguments.interval)
                seen = see(home, arguments.sweep)
                live.update(render(seen), refresh=True)
    except KeyboardInterrupt:
        return 0
    say(_end(seen, arguments.home))
    return 0


def as_text(seen: Seen) -> str:
    """Lines without colour, as wide as they are."""
    written = io.StringIO()
    Console(file=written, width=PLAIN_WIDTH, color_system=None).print(render(seen))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def render(seen: Seen) -> RenderableType:
    """A sweep as it stands."""
    parts: list[RenderableType] = [Text(line, no_wrap=True) for line in _head(seen)]
    if seen.running:
        parts += ["", _running(seen.running)]
    if seen.failed:
        parts += ["", _failed(seen.failed)]
    return Group(*parts)


def _head(seen: Seen) -> Iterator[str]:
    generation = "" if seen.generation in (None, 1) else f" (generation {seen.generation})"
    driver = "" if seen.driver is None else f", driven by {seen.driver}"
    yield f"{seen.name}{generation}: {seen.state}{driver}"
    if not seen.asked:
        return
    words = _STATES if seen.driver else {**_STATES, "running": "unfinished"}
    states = [
        f"{seen.trials[name]} {word}" for name, word in words.items() if seen.trials.get(name)
    ]
    to_come = seen.asked - sum(seen.trials.values())
    states += [f"{to_come} to come"] if to_come > 0 else []
    yield f"trials  {', '.join(states)}"
    left = "" if seen.seconds_left is None else f"; about {duration(seen.seconds_left)} left"
    yield f"runs    {seen.runs_ended} of {seen.runs} ended{left}"
    if seen.best is not None:
        best = seen.best
        found = f"{seen.metric} {best['value']:.4f}  trial {best['trial']}"
        yield f"best    {found}  {setting(best['params'])}".rstrip()


def _running(runs: tuple[RunningRun, ...]) -> Table:
    table = _table("running", "epoch", "id/val", "images/s", "for")
    for run in runs:
        val, speed = run.metrics.get("id/val/top1"), run.metrics.get("system/images_per_s")
        table.add_row(
            Text(run.label),
            "starting" if run.epoch is None else f"{run.epoch}/{run.epochs}",
            "" if val is None else f"{100 * val:.1f} %",
            "" if speed is None else f"{speed:.0f}",
            duration(max(0.0, time.time() - run.since)),
        )
    return table


def _failed(runs: tuple[FailedRun, ...]) -> Table:
    table = _table("failed last", "at", "why")
    for run in runs:
        at = datetime.fromtimestamp(run.ended).astimezone().strftime("%m-%d %H:%M")
        table.add_row(Text(run.label), at, Text(f"{run.kind}: {run.message}"))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, header_style="bold", no_wrap=True, overflow="ellipsis")
    return table


def _end(seen: Seen, home: str | None) -> str:
    if seen.state == "interrupted":
        return f"Interrupted. To go on: {command('resume', seen.name, home)}"
    return f"It has ended. The result: {command('compare', seen.name, home)}"


_STATES = {"complete": "complete", "running": "running", "failed": "failed", "pruned": "pruned"}
