"""The commands that show how sweeps stand: list, watch."""

from __future__ import annotations

import argparse
import io
import json
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from carft_core.files import read_json
from sweeps.home import Home, find_home
from sweeps.ledger.claim import holder
from sweeps.ledger.runs import Lease, RunState, RunStore
from sweeps.ledger.summary import read_summaries, summary_of
from sweeps.ledger.trials import (
    CONFIRMATIONS,
    FINAL_RUNS,
    SOUPS,
    Ledger,
    Setting,
    Trial,
    newest_generation,
    sweep_folder,
)
from sweeps.scheduler.progress import duration
from tracking.comparison.runs import setting

MEASURED = 20
"""So many trials, the last ones, tell how long a run takes."""


@dataclass(frozen=True)
class RunningRun:
    """A run that somebody works on; times in seconds since the Unix epoch."""

    label: str
    since: float
    """When this attempt began."""
    epoch: int | None
    """The last one reported; None before the first report."""
    epochs: int | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class FailedRun:
    """A run that has failed, and is not being tried again just now."""

    label: str
    kind: str
    message: str
    log_tail: str
    folder: Path
    ended: float


@dataclass(frozen=True)
class Seen:
    """A sweep as it stands."""

    name: str
    state: str
    driver: Lease | None
    generation: int | None = None
    metric: str | None = None
    asked: int = 0
    """Trials that there will be."""
    trials: Mapping[str, int] = field(default_factory=dict)
    """By state."""
    best: Mapping[str, Any] | None = None
    """`value`, `trial`, `params`."""
    runs: int = 0
    runs_ended: int = 0
    running: tuple[RunningRun, ...] = ()
    failed: tuple[FailedRun, ...] = ()
    """The last one last."""
    seconds_left: float | None = None


def see(home: Home, name: str) -> Seen:
    """Read what is there now. Raises RequestError with the nearest name for an unknown sweep."""
    folder = sweep_folder(home, name)
    driver = holder(folder)
    ledger = newest_generation(home, name)
    if ledger is None:
        return Seen(name, "starting" if driver else "interrupted", driver)
    summary = summary_of(ledger)
    state = summary["state"]
    if state == "running" and driver is None:
        state = "interrupted"
    runs = RunStore(home.runs)
    trials, beside = ledger.trials(), ledger.beside_trials()
    asked = int(ledger.recall("trial_count", len(trials)))
    open_runs = list(_states(runs, _digests(beside, trials, "running")))
    seeds = len(ledger.spec["seeds"])
    baselines = sum(len(baseline.runs) for baseline in ledger.baselines())
    total = baselines + asked * seeds + int(ledger.recall(FINAL_RUNS, 0))
    ended = sum(run.state in ("done", "failed") for run in open_runs)
    ended += seeds * sum(trial.state != "running" for trial in trials)
    running = tuple(_running_run(runs, run) for run in open_runs if run.is_live)
    return Seen(
        name=name,
        state=state,
        driver=driver,
        generation=ledger.generation,
        metric=summary["metric"],
        asked=asked,
        trials=Counter(trial.state for trial in trials),
        best=summary["best"],
        runs=total,
        runs_ended=min(ended, total),
        running=running if driver else (),
        failed=failed_runs(home, ledger),
        seconds_left=_left(runs, trials, total - ended, running) if driver else None,
    )


def command(verb: str, name: str, home: str | None) -> str:
    """Write what to type next: `carft-sweep resume toy --home x`; `home` is the option as given."""
    return shlex.join(["carft-sweep", verb, name, *(["--home", home] if home else [])])


def failed_runs(home: Home, ledger: Ledger, most: int = 5) -> tuple[FailedRun, ...]:
    """The runs that failed last, by when; at most `most`."""
    runs = RunStore(home.runs)
    trials = [t for t in ledger.trials() if t.state in ("running", "failed")]
    trials.sort(key=lambda trial: trial.number)
    open_ones = [trial for trial in trials if trial.state == "running"]
    last = [trial for trial in trials if trial.state == "failed"][-most:]
    digests = _digests(ledger.beside_trials(), [*open_ones, *last])
    found = [
        FailedRun(
            label=state.label,
            kind=state.failure["kind"],
            message=state.failure["message"],
            log_tail=state.failure.get("log_tail", ""),
            folder=runs.folder(state.digest),
            ended=state.ended or state.created,
        )
        for state in _states(runs, digests)
        if state.state == "failed" and state.failure is not None
    ]
    return tuple(sorted(found, key=lambda run: run.ended)[-most:])


def _digests(
    beside: Sequence[Setting], trials: Sequence[Trial], state: str | None = None
) -> Iterator[str]:
    for reference in beside:
        yield from reference.runs.values()
    for trial in trials:
        if state is None or trial.state == state:
            yield from trial.runs.values()


def _states(runs: RunStore, digests: Iterator[str]) -> Iterator[RunState]:
    for digest in dict.fromkeys(digests):
        state = runs.read(digest)
        if state is not None:
            yield state


def _running_run(runs: RunStore, state: RunState) -> RunningRun:
    history = read_json(runs.folder(state.digest) / "history.json") or []
    last: Mapping[str, Any] = history[-1] if history else {}
    return RunningRun(
        label=state.label,
        since=state.lease.since if state.lease else state.created,
        epoch=last.get("epoch"),
        epochs=last.get("epochs"),
        metrics=last.get("metrics", {}),
    )


def _left(
    runs: RunStore, trials: Sequence[Trial], to_come: int, running: Sequence[RunningRun]
) -> float | None:
    """Seconds to go at the present pace; None before a run has told how long one takes."""
    ended = [trial for trial in trials if trial.state == "complete"]
    ended.sort(key=lambda trial: trial.number)
    known = _states(runs, _digests((), ended[-MEASURED:]))
    lengths = [length for state in known if (length := _length(runs, state)) is not None]
    if not lengths:
        return None
    usual, now = statistics.median(lengths), time.time()
    begun = sum(min(usual, now - run.since) for run in running)
    return max(0.0, usual * to_come - begun) / max(1, len(running))


def _length(runs: RunStore, state: RunState) -> float | None:
    """Seconds from a run's first report to its end; None of a run that reports nothing."""
    history = read_json(runs.folder(state.digest) / "history.json")
    if not history or state.ended is None:
        return None
    return max(0.0, state.ended - float(history[0]["timestamp"]) / 1000)


def is_open(home: Home, ledger: Ledger, asked: int, *, failed_again: bool) -> bool:
    """Whether an execution with `asked` trials would find something to run.

    Failed runs and trials are tried again; those that became NaN only with `failed_again`.
    """
    told = [trial for trial in ledger.trials() if trial.point < asked]
    if len(told) < asked:
        return True
    for trial in told:
        kind = (trial.reason or {}).get("kind")
        if trial.state == "running":
            return True
        if trial.state == "failed" and (failed_again or kind != "nan"):
            return True
    for asked_for, chosen in (("confirm_seeds", CONFIRMATIONS), ("after", SOUPS)):
        if ledger.spec.get(asked_for) and ledger.recall(chosen) is None:
            return True
    runs = RunStore(home.runs)
    beside = [runs.read(digest) for digest in _digests(ledger.beside_trials(), ())]
    return any(
        run is None or not (run.state == "done" or (run.is_permanent_failure and not failed_again))
        for run in beside
    )


Say = Callable[[str], None]


def list_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    found = read_summaries(home)
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


PLAIN_WIDTH = 200


def watch_command(arguments: argparse.Namespace, say: Say) -> int:
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
        parts += ["", _running_table(seen.running)]
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


def _running_table(runs: tuple[RunningRun, ...]) -> Table:
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
