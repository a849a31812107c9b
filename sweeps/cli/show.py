"""`carft-sweep show`: every trial of a sweep, and its runs."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeps.home import Home, find_home
from sweeps.ledger.claim import holder
from sweeps.ledger.runs import NO_SEED, RunStore
from sweeps.ledger.summary import goals
from sweeps.ledger.trials import Ledger, Setting, find_ledger
from sweeps.results.records import front, measured, state_of
from sweeps.results.sent_log import SentLog
from sweeps.scheduler.progress import figures
from tracking.comparison.runs import UNMERGED, setting
from tracking.location import resolve_location

if TYPE_CHECKING:
    from sweeps.ledger.trials import State, Trial

Say = Callable[[str], None]


MOST = 50
"""Trials that are printed, unless more are asked for."""
STATES: Sequence[State] = ("running", "complete", "pruned", "failed")
"""In the order in which they are shown when there are too many."""
_BESIDE = {"baseline": "baselines", "confirmation of": "confirmations", "soup": "soups"}
"""What is shown before the trials: how a setting is called, and its key."""
_UNDRIVEN: Mapping[str, str] = {"running": "unfinished"}
"""How people are told the states of trials while nobody runs the sweep."""


def show_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    shown = Shown.of(home, find_ledger(home, arguments.sweep))
    if arguments.json:
        trials = shown.chosen(arguments.state, None)
        say(json.dumps(shown.to_dict(trials), allow_nan=False))
        return 0
    most = None if arguments.all else arguments.limit or MOST
    trials = shown.chosen(arguments.state, most)
    words = _UNDRIVEN if holder(home.sweep(arguments.sweep)) is None else {}
    for line in _lines(shown.to_dict(trials), len(trials), arguments.state, words):
        say(line)
    return 0


@dataclass(frozen=True)
class Shown:
    """A sweep and what of its files is shown with it."""

    sweep: Ledger
    runs: RunStore
    ids: Mapping[str, str]
    """Digest to the id of the run in MLflow."""
    trials: Sequence[Trial]
    on_front: set[int] | None
    """Numbers of the trials that no other one beats; None with one goal."""

    @classmethod
    def of(cls, home: Home, sweep: Ledger) -> Shown:
        """Read the sweep, but not its runs."""
        ids = SentLog(home.sweep(sweep.name), resolve_location(home.path)).run_ids()
        trials = sweep.trials()
        maximized = [goal["goal"] == "maximize" for goal in goals(sweep.spec)]
        values = {trial.number: trial.values for trial in trials if trial.values}
        best = front(values, maximized) if len(maximized) > 1 else None
        return cls(sweep, RunStore(home.runs), ids, trials, best)

    def chosen(self, state: str | None, most: int | None) -> Sequence[Trial]:
        """All trials in that state, or so many: what runs, then the front and the best."""
        found = [trial for trial in self.trials if state is None or trial.state == state]
        if most is None or len(found) <= most:
            return found
        sign = 1 if goals(self.sweep.spec)[0]["goal"] == "minimize" else -1

        def rank(trial: Trial) -> tuple[int, bool, float, int]:
            beaten = trial.number not in (self.on_front or ())
            return STATES.index(trial.state), beaten, sign * (trial.value or 0.0), trial.number

        return sorted(found, key=rank)[:most]

    def to_dict(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """What `show --json` prints: plain data."""
        sweep = self.sweep
        front_ = {} if self.on_front is None else {"front": sorted(self.on_front)}
        counts = Counter(trial.state for trial in self.trials)
        return {
            "sweep": sweep.name,
            "generation": sweep.generation,
            "metric": goals(sweep.spec)[0],
            "metrics": list(goals(sweep.spec)),
            "seeds": sweep.spec["seeds"],
            "mlflow_run_id": self.ids.get(""),
            "counts": {"trials": len(self.trials), **{state: counts[state] for state in STATES}},
            **front_,
            "baselines": [self._setting(item) for item in sweep.baselines()],
            "confirmations": [self._setting(item) for item in sweep.confirmations()],
            "soups": [self._setting(item) for item in sweep.soups()],
            "trials": list(map(self._trial, trials)),
        }

    def _setting(self, setting: Setting) -> dict[str, Any]:
        return {
            "algorithm": setting.algorithm,
            "params": setting.params,
            "runs": self._runs(setting.runs),
        }

    def _trial(self, trial: Trial) -> dict[str, Any]:
        return {
            "number": trial.number,
            "state": trial.state,
            "algorithm": trial.algorithm,
            "params": dict(trial.params),
            "value": trial.value,
            "values": list(trial.values),
            "reason": None if trial.reason is None else dict(trial.reason),
            "runs": self._runs(trial.runs),
        }

    def _runs(self, digests: Mapping[str, str]) -> list[dict[str, Any]]:
        return [self._run(seed, digest) for seed, digest in digests.items()]

    def _run(self, seed: str, digest: str) -> dict[str, Any]:
        folder = self.runs.folder(digest)
        own, known = measured(folder, UNMERGED), self.runs.read(digest)
        return {
            "seed": None if seed == NO_SEED else int(seed),
            "state": state_of(known, done=own is not None),
            "digest": digest,
            "mlflow_run_id": self.ids.get(digest),
            "attempts": known.attempts if known else 0,
            "failure": known.failure if known else None,
            "folder": str(folder),
            "metrics": dict(own["metrics"]) if own else {},
        }


def _lines(
    shown: Mapping[str, Any], count: int, state: str | None, words: Mapping[str, str]
) -> Iterator[str]:
    names = ", ".join(goal["name"] for goal in shown["metrics"])
    yield f"{shown['sweep']} (generation {shown['generation']}), by {names}"
    counts = dict(shown["counts"])
    total = counts.pop("trials")
    told = ", ".join(
        f"{number} {words.get(name, name)}" for name, number in counts.items() if number
    )
    yield f"{total} trials{': ' if told else ''}{told}"
    if "front" in shown:
        yield from _front_lines(shown["front"])
    for word, key in _BESIDE.items():
        for item in shown[key]:
            yield f"\n{word} {item['algorithm']} {setting(item['params'])}".rstrip()
            yield from _run_lines(item)
    for trial in shown["trials"]:
        told_state = words.get(trial["state"], trial["state"])
        yield from _trial_lines(trial, told_state, trial["number"] in shown.get("front", ()))
    asked = total if state is None else counts[state]
    if count < asked:
        yield (
            f"\n{asked - count} more trials. --limit N shows the best N, --all every one, "
            "--state failed those that failed."
        )


def _front_lines(numbers: Sequence[int]) -> Iterator[str]:
    if numbers:
        some = ", ".join(map(str, numbers[:MOST]))
        rest = f" and {len(numbers) - MOST} more" if len(numbers) > MOST else ""
        yield f"Pareto front: {len(numbers)} trials that no other one beats: {some}{rest}"


def _trial_lines(trial: Mapping[str, Any], state: str, on_front: bool) -> Iterator[str]:
    name = f"{trial['algorithm']} {setting(trial['params'])}".rstrip()
    values = " / ".join(f"{value:.4f}" for value in trial["values"])
    words = [f"trial {trial['number']}", state, values, "front" if on_front else "", name]
    yield "\n" + "  ".join(word for word in words if word)
    if trial["reason"]:
        yield f"  {trial['reason']['kind']}: {trial['reason']['message']}"
    yield from _run_lines(trial)


def _run_lines(of: Mapping[str, Any]) -> Iterator[str]:
    for run in of["runs"]:
        seed = "no seed" if run["seed"] is None else f"seed {run['seed']}"
        words = [seed, run["state"], run["digest"][:12], figures(run["metrics"])]
        if run["mlflow_run_id"]:
            words.append(f"MLflow {run['mlflow_run_id']}")
        yield f"  {'  '.join(word for word in words if word)}"
        if run["failure"] and run["state"] == "failed":
            yield f"    {run['failure']['kind']}: {run['failure']['message']}"
            yield f"    log: {run['folder']}/log.txt"
