"""What can be seen of a sweep from outside, while it runs and afterwards, from its files alone."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_core.files import read_json
from sweeps.claim import holder
from sweeps.home import Home
from sweeps.known import sweep_folder
from sweeps.lease import Lease
from sweeps.mirror import CONFIRMATIONS, FINAL_RUNS, SOUPS, beside_trials, view
from sweeps.named import look
from sweeps.runs import Runs, RunState

if TYPE_CHECKING:
    from sweeps.ledger import Trial
    from sweeps.mirror import Kept

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
    summary: Mapping[str, Any] = read_json(folder / "summary.json") or {}
    state = str(summary.get("state", "running"))
    if state == "running" and driver is None:
        state = "interrupted"
    kept = kept_sweep(home, name, driver)
    if kept is None:
        return Seen(name, "starting" if driver else state, driver)
    runs = Runs(home.runs)
    trials, beside = kept.trials(), beside_trials(kept)
    asked = int(kept.recall("trial_count", len(trials)))
    open_runs = list(_states(runs, _digests(beside, trials, "running")))
    seeds = len(kept.spec["seeds"])
    baselines = sum(len(baseline["runs"]) for baseline in kept.recall("baselines", []))
    total = baselines + asked * seeds + int(kept.recall(FINAL_RUNS, 0))
    ended = sum(run.state in ("done", "failed") for run in open_runs)
    ended += seeds * sum(trial.state != "running" for trial in trials)
    running = tuple(_running(runs, run) for run in open_runs if run.is_live)
    return Seen(
        name=name,
        state=state,
        driver=driver,
        generation=kept.generation,
        metric=summary.get("metric"),
        asked=asked,
        trials=Counter(trial.state for trial in trials),
        best=summary.get("best"),
        runs=total,
        runs_ended=min(ended, total),
        running=running if driver else (),
        failed=failed_runs(home, kept),
        seconds_left=_left(runs, trials, total - ended, running) if driver else None,
    )


def kept_sweep(home: Home, name: str, driver: Lease | None) -> Kept | None:
    """The sweep's mirror; its database only where there is no mirror and no driver to write one."""
    if driver is not None:
        return view(home, name)
    return look(home, name)


def failed_runs(home: Home, kept: Kept, most: int = 5) -> tuple[FailedRun, ...]:
    """The runs that failed last, by when; at most `most`."""
    runs = Runs(home.runs)
    trials = [t for t in kept.trials() if t.state in ("running", "failed")]
    trials.sort(key=lambda trial: trial.number)
    open_ones = [trial for trial in trials if trial.state == "running"]
    last = [trial for trial in trials if trial.state == "failed"][-most:]
    digests = _digests(beside_trials(kept), [*open_ones, *last])
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
    beside: Sequence[Mapping[str, Any]], trials: Sequence[Trial], state: str | None = None
) -> Iterator[str]:
    for setting in beside:
        yield from setting["runs"].values()
    for trial in trials:
        if state is None or trial.state == state:
            yield from trial.runs.values()


def _states(runs: Runs, digests: Iterator[str]) -> Iterator[RunState]:
    for digest in dict.fromkeys(digests):
        state = runs.read(digest)
        if state is not None:
            yield state


def _running(runs: Runs, state: RunState) -> RunningRun:
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
    runs: Runs, trials: Sequence[Trial], to_come: int, running: Sequence[RunningRun]
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


def _length(runs: Runs, state: RunState) -> float | None:
    """Seconds from a run's first report to its end; None of a run that reports nothing."""
    history = read_json(runs.folder(state.digest) / "history.json")
    if not history or state.ended is None:
        return None
    return max(0.0, state.ended - float(history[0]["timestamp"]) / 1000)


def is_open(home: Home, kept: Kept, asked: int, *, failed_again: bool) -> bool:
    """Whether an execution with `asked` trials would find something to run.

    Failed runs and trials are tried again; those that became NaN only with `failed_again`.
    """
    told = [trial for trial in kept.trials() if trial.point < asked]
    if len(told) < asked:
        return True
    for trial in told:
        kind = (trial.reason or {}).get("kind")
        if trial.state == "running":
            return True
        if trial.state == "failed" and (failed_again or kind != "nan"):
            return True
    for asked_for, chosen in (("confirm_seeds", CONFIRMATIONS), ("after", SOUPS)):
        if kept.spec.get(asked_for) and kept.recall(chosen) is None:
            return True
    runs = Runs(home.runs)
    beside = [runs.read(digest) for digest in _digests(beside_trials(kept), ())]
    return any(
        run is None or not (run.state == "done" or (run.failed_for_good and not failed_again))
        for run in beside
    )
