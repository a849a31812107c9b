"""The commands that show how sweeps stand: list, watch."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.live import Live
from rich.text import Text

from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.table import table_lines
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.claim import holder
from carft_sweep.sweeps.ledger.ledger import (
    FINAL_RUNS,
    TRIAL_RUNS,
    Ledger,
    Setting,
    Trial,
    newest_generation,
    sweep_folder,
)
from carft_sweep.sweeps.ledger.runs import Lease, RunState, RunStore, history
from carft_sweep.sweeps.ledger.status import summaries, summary_of
from carft_sweep.sweeps.scheduler.progress import MEASURED, duration, seconds_left, value_text
from carft_sweep.tracking.console import PlainConsole
from carft_sweep.tracking.program import command, program


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
class SweepStatus:
    """The state of a sweep."""

    name: str
    state: str
    driver: Lease | None
    generation: int | None = None
    metric: str | None = None
    asked: int = 0
    """The number of trials that there will be."""
    trials: Mapping[str, int] = field(default_factory=dict)
    """The number of trials by state."""
    best: Mapping[str, Any] | None = None
    """`value`, `trial`, `params`."""
    runs: int = 0
    runs_ended: int = 0
    running: tuple[RunningRun, ...] = ()
    failed: tuple[RunState, ...] = ()
    """The latest failures, in order of time."""
    seconds_left: float | None = None


def sweep_status(home: Home, name: str) -> SweepStatus:
    """Return a sweep's state. Raises RequestError, with the nearest name, for an unknown sweep."""
    folder = sweep_folder(home, name)
    driver = holder(folder)
    ledger = newest_generation(home, name)
    if ledger is None:
        return SweepStatus(name, "starting" if driver else "interrupted", driver)
    summary = summary_of(ledger)
    runs = RunStore(home.runs)
    trials, beside = ledger.trials(), ledger.beside_trials()
    asked = int(ledger.recall("trial_count", len(trials)))
    unfinished = [trial for trial in trials if trial.state == "running"]
    open_runs = list(_states(runs, [*beside, *unfinished]))
    total = _total(ledger, asked)
    settled = set(_digests(trial for trial in trials if trial.state != "running"))
    settled |= {run.digest for run in open_runs if run.state in ("done", "failed")}
    ended = len(settled)
    running = tuple(_running_run(runs, run) for run in open_runs if run.is_live)
    return SweepStatus(
        name=name,
        state=summary["state"],
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
        seconds_left=_seconds_left(runs, trials, total - ended, running, driver.since)
        if driver
        else None,
    )


def _total(ledger: Ledger, count: int) -> int:
    """Return the number of distinct runs of a sweep with `count` trials: an upper bound until all
    are proposed. Later runs (confirmations, soups) count once their number is in the ledger."""
    baselines, trials = ledger.baselines(), ledger.trials()
    to_come = (count - len(trials)) * len(ledger.spec["seeds"])
    distinct = len(_digests([*baselines, *trials])) + max(0, to_come)
    planned = sum(len(baseline.runs) for baseline in baselines)
    planned += int(ledger.recall(TRIAL_RUNS, count * len(ledger.spec["seeds"])))
    return min(distinct, planned) + int(ledger.recall(FINAL_RUNS, 0))


def failed_runs(home: Home, ledger: Ledger, most: int = 5) -> tuple[RunState, ...]:
    """Return the runs that failed last, and are not being tried again just now, at most `most`, in
    order of time."""
    runs = RunStore(home.runs)
    trials = sorted(ledger.trials(), key=lambda trial: trial.number)
    open_ones = [trial for trial in trials if trial.state == "running"]
    last = [trial for trial in trials if trial.state == "failed"][-most:]
    states = _states(runs, [*ledger.beside_trials(), *open_ones, *last])
    failed = [run for run in states if run.state == "failed" and run.failure is not None]
    return tuple(sorted(failed, key=_ended)[-most:])


def _ended(run: RunState) -> float:
    return run.ended or run.created


def _digests(items: Iterable[Setting | Trial]) -> list[str]:
    return list(dict.fromkeys(digest for item in items for digest in item.runs.values()))


def _states(runs: RunStore, items: Iterable[Setting | Trial]) -> Iterator[RunState]:
    """Yield the states of the runs of settings and trials that have begun."""
    return filter(None, map(runs.read, _digests(items)))


def _running_run(runs: RunStore, state: RunState) -> RunningRun:
    epochs = history(runs.folder(state.digest))
    last: Mapping[str, Any] = epochs[-1] if epochs else {}
    since = state.lease.since if state.lease else state.created
    # Whole milliseconds, as epochs have them. An earlier one is of an attempt that was lost.
    is_of_now = last.get("timestamp", 0) >= int(1000 * since)
    return RunningRun(
        label=state.label,
        since=since,
        epoch=last.get("epoch"),
        epochs=last.get("epochs"),
        metrics=last["metrics"] if is_of_now else {},
    )


def _seconds_left(
    runs: RunStore,
    trials: Sequence[Trial],
    to_come: int,
    running: Sequence[RunningRun],
    since: float,
) -> float | None:
    """Return an estimate of the seconds left for a driver that began at `since`; None before the
    first run has ended."""
    ended = [trial for trial in trials if trial.state == "complete"]
    ended.sort(key=lambda trial: trial.number)
    last = _states(runs, ended[-MEASURED:])
    spans = [span for state in last if (span := _span(runs, state)) is not None]
    # How many were side by side under another driver says nothing of this one.
    spans = [span for span in spans if span[0] >= since] or spans[-1:]
    spans.sort(key=lambda span: span[1])
    return seconds_left(spans, [run.since for run in running], to_come, time.time())


def _span(runs: RunStore, state: RunState) -> tuple[float, float] | None:
    """Return when a run first reported and when it ended; None for a run without reports, or one
    that was interrupted in between."""
    epochs = history(runs.folder(state.digest))
    if not epochs or state.ended is None or state.attempts > 1:
        return None
    return float(epochs[0]["timestamp"]) / 1000, state.ended


def list_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `list` command."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    every = summaries(home)
    if arguments.json:
        emit(json.dumps(every, indent=1))
        return
    if not every:
        emit(f"No sweep was run in {home.path} yet. Try: {program()} run kl_weight")
        return
    columns = ("sweep", "state", "trials", "best", "by", "last change")
    emit("\n".join(table_lines(columns, map(_row, every))))


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    trials, best = summary["trials"], summary["best"]
    counted = f"{trials['complete']}/{trials['asked']}"
    for state in ("pruned", "failed"):
        counted += f", {trials[state]} {state}" if trials.get(state) else ""
    best_text = ""
    if best is not None:
        # Not for a list without one: it imports pydantic.
        from carft_sweep.tracking.comparison.runs import setting

        value = value_text(summary["metric"], best["value"])
        best_text = f"{summary['metric']} {value} {setting(best['params'])}"
    when = datetime.fromtimestamp(summary["updated"]).astimezone().strftime("%Y-%m-%d %H:%M")
    return summary["name"], summary["state"], counted, best_text.rstrip(), summary["by"], when


PAUSE = 2.0
"""Seconds between two updates of `watch`."""


def state_word(state: str, *, driven: bool) -> str:
    """Return the word for a trial's state: `unfinished` for running, if no driver is alive."""
    return "unfinished" if state == "running" and not driven else state


def watch_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `watch` command. Ctrl-C does not end the sweep."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    status = sweep_status(home, arguments.sweep)
    console = PlainConsole()
    if not console.is_terminal:
        emit(as_text(status, arguments.home))
        return

    def cropped() -> Text:
        return Text(as_text(status, arguments.home), no_wrap=True, overflow="ellipsis")

    try:
        with Live(cropped(), console=console, auto_refresh=False) as live:
            while status.driver is not None:
                time.sleep(PAUSE)
                status = sweep_status(home, arguments.sweep)
                live.update(cropped(), refresh=True)
    except KeyboardInterrupt:
        return
    emit(_end(status, arguments.home))


def as_text(status: SweepStatus, home: str | None = None) -> str:
    """Return a description of a sweep's state; `home` is `--home` as given, for commands in it."""
    lines = [*_head(status, home)]
    if status.running:
        lines += ["", *_running_lines(status.running)]
    if status.failed:
        lines += ["", *_failed_lines(status.failed)]
    return "\n".join(lines)


def _head(status: SweepStatus, home: str | None) -> Iterator[str]:
    from carft_sweep.tracking.comparison.runs import (
        setting,  # which imports pydantic: not for `list`
    )

    generation = "" if status.generation in (None, 1) else f" (generation {status.generation})"
    driver = "" if status.driver is None else f", driven by {status.driver}"
    yield f"{status.name}{generation}: {status.state}{driver}"
    if not status.asked:
        return
    states = [
        f"{status.trials[state]} {state_word(state, driven=status.driver is not None)}"
        for state in ("complete", "running", "failed", "pruned")
        if status.trials.get(state)
    ]
    to_come = status.asked - sum(status.trials.values())
    states += [f"{to_come} to come"] if to_come > 0 else []
    yield f"trials  {', '.join(states)}"
    left = "" if status.seconds_left is None else f"; about {duration(status.seconds_left)} left"
    yield f"runs    {status.runs_ended} of {status.runs} ended{left}"
    if status.best is not None:
        best = status.best
        value = f"{status.metric} {value_text(str(status.metric), best['value'])}"
        yield f"best    {setting(best['params'])}  {value}  trial {best['trial']}"
    yield f"more    {command('compare', status.name, home)}"


def _running_lines(runs: Sequence[RunningRun]) -> Iterator[str]:
    rows = []
    for run in runs:
        val, speed = run.metrics.get("id/val/top1"), run.metrics.get("system/images_per_s")
        row = (
            run.label,
            "starting" if run.epoch is None else f"{run.epoch}/{run.epochs}",
            "" if val is None else f"{100 * val:.1f} %",
            "" if speed is None else f"{speed:.0f}",
            duration(max(0.0, time.time() - run.since)),
        )
        rows.append(row)
    return table_lines(("running", "epoch", "id/val", "images/s", "for"), rows)


def _failed_lines(runs: Sequence[RunState]) -> Iterator[str]:
    rows = []
    for run in runs:
        at = datetime.fromtimestamp(_ended(run)).astimezone().strftime("%m-%d %H:%M")
        rows.append((run.label, at, "{kind}: {message}".format(**run.failure or {})))
    return table_lines(("failed last", "at", "why"), rows)


def _end(status: SweepStatus, home: str | None) -> str:
    if status.state == "interrupted":
        return f"Interrupted. To go on: {command('resume', status.name, home)}"
    return f"It has ended. The result: {command('compare', status.name, home)}"
