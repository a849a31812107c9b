"""`carft-sweep show`: every trial of a sweep, and its runs."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.status import state_word
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.claim import holder
from carft_sweep.sweeps.ledger.ledger import Ledger, Setting, State, Trial, find_ledger
from carft_sweep.sweeps.ledger.runs import NO_SEED, RunStore, measured, undamaged
from carft_sweep.sweeps.ledger.status import BAD_NODES, goals, source_of, started_by
from carft_sweep.sweeps.results.records import front, state_of
from carft_sweep.sweeps.results.sent_log import SentLog, place_of
from carft_sweep.sweeps.scheduler.progress import figures, value_text
from carft_sweep.tracking.comparison.runs import UNMERGED, setting
from carft_sweep.tracking.errors import counted

MOST = 50
"""Trials that are printed, without `--all`."""
STATES: Sequence[State] = ("running", "complete", "pruned", "failed")
"""The states of trials in the order in which these are shown when there are too many."""
_BESIDE = {"baseline": "baselines", "confirmation of": "confirmations", "soup": "soups"}
"""What is shown before the trials: how a setting is called, and its key."""


def show_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `show` command."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    ledger = find_ledger(home, arguments.sweep)
    on_front = _front(ledger)
    trials = [trial for trial in ledger.trials() if arguments.state in (None, trial.state)]
    if not (arguments.json or arguments.all or len(trials) <= MOST):
        trials = _ranked(trials, ledger, on_front)[:MOST]
    sweep = _sweep_as_dict(home, ledger, trials, on_front)
    if arguments.json:
        emit(json.dumps(sweep, allow_nan=False))
        return
    driven = holder(home.sweep(arguments.sweep)) is not None
    emit("\n".join(_lines(sweep, arguments.state, driven=driven)))


def _front(ledger: Ledger) -> set[int] | None:
    """Return the numbers of the trials on the Pareto front; None with a single goal."""
    maximized = [goal["goal"] == "maximize" for goal in goals(ledger.spec)]
    if len(maximized) == 1:
        return None
    return front({t.number: t.values for t in ledger.trials() if t.values}, maximized)


def _ranked(trials: Sequence[Trial], ledger: Ledger, on_front: set[int] | None) -> list[Trial]:
    """Sort trials for the table by state, with the Pareto front before others, then by value."""
    sign = 1 if goals(ledger.spec)[0]["goal"] == "minimize" else -1

    def rank(trial: Trial) -> tuple[int, bool, float, int]:
        beaten = trial.number not in (on_front or ())
        return STATES.index(trial.state), beaten, sign * (trial.value or 0.0), trial.number

    return sorted(trials, key=rank)


def _sweep_as_dict(
    home: Home, ledger: Ledger, trials: Sequence[Trial], on_front: set[int] | None
) -> dict[str, Any]:
    """Return a sweep as the plain data that `show --json` prints."""
    runs = RunStore(home.runs)
    ids = SentLog(home.sweep(ledger.name), place_of(home, ledger)).run_ids()

    def runs_of(item: Setting | Trial) -> list[dict[str, Any]]:
        return [_run_as_dict(runs, ids, seed, digest) for seed, digest in item.runs.items()]

    def settings(items: Sequence[Setting]) -> list[dict[str, Any]]:
        return [
            {"algorithm": item.algorithm, "params": item.params, "runs": runs_of(item)}
            for item in items
        ]

    everything = ledger.trials()
    counts = Counter(trial.state for trial in everything)
    return {
        "sweep": ledger.name,
        "generation": ledger.generation,
        "by": started_by(ledger),
        "bad_nodes": ledger.recall(BAD_NODES, {}),
        "metric": goals(ledger.spec)[0],
        "metrics": list(goals(ledger.spec)),
        "seeds": ledger.spec["seeds"],
        "mlflow_run_id": ids.get(""),
        "counts": {"trials": len(everything), **{state: counts[state] for state in STATES}},
        **({} if on_front is None else {"front": sorted(on_front)}),
        "baselines": settings(ledger.baselines()),
        "confirmations": settings(ledger.confirmations()),
        "soups": settings(ledger.soups()),
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "algorithm": trial.algorithm,
                "params": trial.params,
                "value": trial.value,
                "values": trial.values,
                "reason": trial.reason,
                "from": source_of(ledger.spec, trial),
                "runs": runs_of(trial),
            }
            for trial in trials
        ],
    }


def _run_as_dict(runs: RunStore, ids: Mapping[str, str], seed: str, digest: str) -> dict[str, Any]:
    """Return a run as plain data; `ids` maps digests to MLflow's run ids."""
    folder = runs.results(digest)
    own, state = undamaged(measured, folder, UNMERGED), undamaged(runs.read, digest)
    return {
        "seed": None if seed == NO_SEED else int(seed),
        "state": state_of(state, done=own is not None),
        "digest": digest,
        "mlflow_run_id": ids.get(digest),
        "attempts": state.attempts if state else 0,
        "failure": state.failure if state else None,
        "folder": str(folder),
        "metrics": own["metrics"] if own else {},
    }


def _lines(sweep: Mapping[str, Any], state: str | None, *, driven: bool) -> Iterator[str]:
    names = ", ".join(goal["name"] for goal in sweep["metrics"])
    who = f", run by {sweep['by']}" if sweep["by"] else ""
    yield f"{sweep['sweep']} (generation {sweep['generation']}), by {names}{who}"
    counts, trials = dict(sweep["counts"]), sweep["trials"]
    total = counts.pop("trials")
    words = (f"{counts[name]} {state_word(name, driven=driven)}" for name in counts if counts[name])
    states = ", ".join(words)
    yield f"{counted(total, 'trial')}{': ' if states else ''}{states}"
    for node, why in sweep["bad_nodes"].items():
        yield f"No run begins on {node}, since they fail there: {why}"
    on_front = sweep.get("front", [])
    if on_front:
        some = ", ".join(map(str, on_front[:MOST]))
        rest = f" and {len(on_front) - MOST} more" if len(on_front) > MOST else ""
        yield f"Pareto front: {len(on_front)} trials that no other one beats: {some}{rest}"
    for word, key in _BESIDE.items():
        for item in sweep[key]:
            yield f"\n{word} {item['algorithm']} {setting(item['params'])}".rstrip()
            yield from _run_lines(item["runs"])
    for trial in trials:
        name = f"{trial['algorithm']} {setting(trial['params'])}".rstrip()
        values = " / ".join(
            value_text(goal["name"], value)
            for goal, value in zip(sweep["metrics"], trial["values"], strict=False)
        )
        mark = "front" if trial["number"] in on_front else ""
        mark += f"from {trial['from']}" if trial["from"] else ""
        trial_state = state_word(trial["state"], driven=driven)
        shown = [f"trial {trial['number']}", trial_state, values, mark, name]
        yield "\n" + "  ".join(filter(None, shown))
        if trial["reason"]:
            yield f"  {trial['reason']['kind']}: {trial['reason']['message']}"
        yield from _run_lines(trial["runs"])
    left = (total if state is None else counts[state]) - len(trials)
    if left:
        yield f"\n{left} more trials. --all shows every one, --state failed those that failed."


def _run_lines(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for run in runs:
        seed = "no seed" if run["seed"] is None else f"seed {run['seed']}"
        state = "to come" if run["state"] == "missing" else run["state"]
        words = [seed, state, run["digest"][:12], figures(run["metrics"])]
        yield f"  {'  '.join(word for word in words if word)}"
        if run["failure"] and run["state"] == "failed":
            yield f"    {run['failure']['kind']}: {run['failure']['message']}"
            yield f"    log: {run['folder']}/log.txt"
