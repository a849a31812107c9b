"""`carft-sweep show SWEEP`: every trial and baseline with its runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sweeps.home import Home, find_home
from sweeps.ledger import Ledger
from sweeps.named import find
from sweeps.progress import accuracies
from sweeps.records import NO_SEED, measured, state_of
from sweeps.runs import Runs
from tracking.journal import known_run_ids
from tracking.records import setting
from tracking.where import where

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    shown = sweep_as_dict(home, find(home, arguments.sweep))
    if arguments.json:
        say(json.dumps(shown, indent=1))
    else:
        for line in _lines(shown):
            say(line)
    return 0


def sweep_as_dict(home: Home, ledger: Ledger) -> dict[str, Any]:
    """Plain data: what `show --json` prints."""
    runs = Runs(home.runs)
    ids = known_run_ids(where(home.path).spool, ledger.name)

    def of(setting: Mapping[str, str]) -> list[dict[str, Any]]:
        return [_run(runs, ids, seed, digest) for seed, digest in setting.items()]

    return {
        "sweep": ledger.name,
        "generation": ledger.generation,
        "metric": ledger.spec["metric"],
        "seeds": ledger.spec["seeds"],
        "mlflow_run_id": ids.get(""),
        "baselines": [
            {
                "algorithm": baseline["algorithm"],
                "params": baseline["params"],
                "runs": of(baseline["runs"]),
            }
            for baseline in ledger.recall("baselines", [])
        ],
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "algorithm": trial.algorithm,
                "params": dict(trial.params),
                "value": trial.value,
                "reason": None if trial.reason is None else dict(trial.reason),
                "runs": of(trial.runs),
            }
            for trial in ledger.trials()
        ],
    }


def _run(runs: Runs, ids: Mapping[str, str], seed: str, digest: str) -> dict[str, Any]:
    own = measured(runs.folder(digest), "unmerged")
    known = runs.read(digest)
    return {
        "seed": None if seed == NO_SEED else int(seed),
        "state": state_of(runs, digest, done=own is not None),
        "digest": digest,
        "mlflow_run_id": ids.get(digest),
        "attempts": known.attempts if known else 0,
        "failure": known.failure if known else None,
        "folder": str(runs.folder(digest)),
        "metrics": dict(own["metrics"]) if own else {},
    }


def _lines(shown: Mapping[str, Any]) -> Iterator[str]:
    yield f"{shown['sweep']} (generation {shown['generation']}), by {shown['metric']['name']}"
    for baseline in shown["baselines"]:
        name = f"{baseline['algorithm']} {setting(baseline['params'])}".rstrip()
        yield f"\nbaseline {name}"
        yield from _run_lines(baseline)
    for trial in shown["trials"]:
        name = f"{trial['algorithm']} {setting(trial['params'])}".rstrip()
        value = "" if trial["value"] is None else f"  {trial['value']:.4f}"
        yield f"\ntrial {trial['number']}  {trial['state']}{value}  {name}"
        if trial["reason"]:
            yield f"  {trial['reason']['kind']}: {trial['reason']['message']}"
        yield from _run_lines(trial)


def _run_lines(of: Mapping[str, Any]) -> Iterator[str]:
    for run in of["runs"]:
        seed = "no seed" if run["seed"] is None else f"seed {run['seed']}"
        words = [seed, run["state"], run["digest"][:12], accuracies(run["metrics"])]
        if run["mlflow_run_id"]:
            words.append(f"MLflow {run['mlflow_run_id']}")
        yield f"  {'  '.join(word for word in words if word)}"
        if run["failure"] and run["state"] == "failed":
            yield f"    {run['failure']['kind']}: {run['failure']['message']}"
            yield f"    log: {run['folder']}/log.txt"
