"""How a sweep stands by its ledger and its runs: its summary, and whether work is left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.claim import holder, limits_of
from carft_sweep.sweeps.ledger.ledger import (
    CONFIRMATIONS,
    SOUPS,
    Ledger,
    Trial,
    damage_named,
    find_ledger,
    newest_generation,
    sweep_names,
)
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.tracking.provenance import USER

OUTCOME = "outcome"
"""Key of the fact how the sweep stands: `state`, `at`, and `broken`, why it was given up."""
BAD_NODES = "bad_nodes"
"""Key of the nodes on which no run begins, since runs fail there alone: node -> last failure."""
State = Literal["running", "done", "interrupted", "failed"]

logger = logging.getLogger(__name__)


def goals(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the goals by which trials are valued, each with `name`, `goal`, `merge`."""
    metrics: Sequence[Mapping[str, Any]] = spec.get("metrics") or [spec["metric"]]
    return metrics


def best_points(home: Home, name: str, count: int) -> list[Mapping[str, Any]]:
    """Return the distinct points of a sweep's complete trials, the best `count` by its first goal.
    Raises RequestError for an unknown sweep, one with tasks, and one without complete trials."""
    ledger = find_ledger(home, name)
    with damage_named(ledger.file):
        sign = 1 if goals(ledger.spec)[0]["goal"] == "maximize" else -1
    complete = [trial for trial in ledger.trials() if trial.value is not None]
    if not complete or ledger.spec.get("tasks"):
        why = "has tasks, whose values do not compare" if complete else "has no complete trial"
        raise RequestError(f"the sweep {name} {why}")
    complete.sort(key=lambda trial: -sign * (trial.value or 0.0))
    points: list[Mapping[str, Any]] = []
    for trial in complete:
        if trial.params not in points:
            points.append(trial.params)
    return points[:count]


def source_of(spec: Mapping[str, Any], trial: Trial) -> str | None:
    """Return the sweep from which `try_first` took a trial's point, or None."""
    cells = spec["parameters"].get(spec.get("tasks"), {}).get("values", [None])
    is_first = trial.point < len(spec.get("try_first", ())) * len(cells)
    return spec.get("try_first_from") if is_first else None


def started_by(ledger: Ledger) -> str:
    """Return the name of the user who ran the sweep last; empty where it was never run."""
    executions = ledger.executions
    return str(executions[-1].get("tags", {}).get(USER, "")) if executions else ""


def summary_of(ledger: Ledger) -> dict[str, Any]:
    """Return what `list --json` shows of a sweep; `updated` is in seconds since the Unix epoch.
    Raises RequestError where the sweep's specification is incomplete, or its driver file is
    damaged."""
    spec, trials = ledger.spec, ledger.trials()
    with damage_named(ledger.file):
        goal, description = goals(spec)[0], spec["description"]
    sign = 1 if goal["goal"] == "maximize" else -1
    complete = [trial for trial in trials if trial.value is not None]
    # Values on several tasks are not compared with each other.
    rivals = [] if spec.get("tasks") else complete
    best = max(rivals, key=lambda trial: sign * (trial.value or 0.0), default=None)
    states = Counter(trial.state for trial in trials)
    state = ledger.recall(OUTCOME, {"state": "running"})["state"]
    if state == "running":
        driver = holder(ledger.file.parent)
        if driver is None:
            state = "interrupted"  # it was killed
        elif limits_of(ledger.file.parent, driver).is_paused:
            state = "paused"
    return {
        "name": ledger.name,
        "description": description,
        "by": started_by(ledger),
        "experiment": spec.get("experiment", ""),
        "state": state,
        "generation": ledger.generation,
        "metric": goal["name"],
        "trials": {
            "asked": ledger.recall("trial_count"),
            "complete": len(complete),
            "failed": states["failed"],
            "pruned": states["pruned"],
        },
        "best": None
        if best is None
        else {"value": best.value, "trial": best.number, "params": dict(best.params)},
        "updated": ledger.file.stat().st_mtime,
    }


def summaries(home: Home) -> list[dict[str, Any]]:
    """Return the summaries (`summary_of`) of a home's sweeps, sorted by name. A sweep whose ledger
    or driver file is damaged is left out, with a warning in the log."""
    every = []
    for name in sweep_names(home):
        try:
            ledger = newest_generation(home, name)
            if ledger is not None:
                every.append(summary_of(ledger))
        except RequestError as error:
            logger.warning("%s is left out: %s", name, error)
    return every


def is_target_reached(ledger: Ledger) -> bool:
    """Return whether some trial is as good as the metric's `target`."""
    goal = goals(ledger.spec)[0]
    target, sign = goal.get("target"), 1 if goal["goal"] == "maximize" else -1
    return target is not None and any(
        trial.value is not None and sign * (trial.value - target) >= 0 for trial in ledger.trials()
    )


def has_work_left(ledger: Ledger, runs: RunStore, *, failed_again: bool = False) -> bool:
    """Return whether another execution of the same sweep would have runs to do. Failed runs and
    trials are tried again; those that became NaN only with `failed_again`. A run whose folder was
    deleted, or has a damaged file, is run again."""
    count = ledger.recall("trial_count")
    trials = [trial for trial in ledger.trials() if count is not None and trial.point < count]
    if count is None or (len(trials) < count and not is_target_reached(ledger)):
        return True
    if any(
        trial.state == "running" or is_tried_again(trial, failed_again=failed_again)
        for trial in trials
    ):
        return True
    for key, chosen in (("confirm_seeds", CONFIRMATIONS), ("after", SOUPS)):
        if ledger.spec.get(key) and ledger.recall(chosen) is None:
            return True
    return any(
        not runs.is_settled(digest, failed_again=failed_again)
        for setting in ledger.settings()
        if setting.trial is None or setting.trial.state == "complete"
        for digest in setting.runs.values()
    )


def is_tried_again(trial: Trial, *, failed_again: bool) -> bool:
    """Return whether the next execution tries a failed trial again; one with NaN only if
    `failed_again`."""
    is_nan = (trial.reason or {}).get("kind") == "nan"
    return trial.state == "failed" and (failed_again or not is_nan)
