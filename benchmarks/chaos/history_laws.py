"""The laws that hold for a sweep whatever has happened to its file, its driver and its projections.

The names are those of the table that `histories` prints. *Undisturbed* is the last file, run once
in a fresh home, with its `parameters` in the order in which the sweep was begun: another order is
no change.

* `exit`: a command ends with the code that its fate allows, in time and without a traceback.
* `ledger`: the ledger can be read after each step, and time spent never falls.
* `generations`: one begins only where `seeds` or `trial.eval` differ from those of the one before.
* `points`: of one generation, and of a method that does not learn from results, the points are the
  undisturbed ones, in order. Of a later generation of a method that learns, the first points are
  those of the generation before, in order, those included that were carried into it and not yet
  proposed. With two runs at once a method that learns has no fixed points.
* `values`: each run has to the last bit what an undisturbed run has, each trial the mean of these,
  on the seeds of the last file; what was pruned is equal too where one run goes at a time.
* `trained`: no epoch is trained twice, except behind the last checkpoint of a run that died, and
  of a run whose folder was damaged by hand. A finished run is never trained again.
* `workers`: none outlives its driver.
* `silence`: no run is given up for silence, however busy the driver is.
* `left`: the sweep is `done`; `resume` and `check` have nothing left to do.
* `comparison`: it is the undisturbed one, where the points are.
* `mlflow`, `study`: after one `sync` they have each trial and run of the ledger, once. MLflow is
  compared with a new database that the same home is sent to, and has the verdict.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from benchmarks.chaos import chain_core
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import SECONDS, Ledger, Trial, find_ledger, newest_generation
from carft_sweep.sweeps.ledger.optuna_copy import open_storage, study_name

NAME = "history"
"""Name of the sweep."""
ADAPTIVE = ("tpe", "gp", "nsga2")
TIMED = ("system/", "train/seconds")
"""Beginnings of the metrics that no two executions have alike."""
TAGS = frozenset(
    {
        *("carft.kind", "carft.run", "carft.sweep", "carft.state", "carft.trial"),
        *("carft.failure", "carft.role", "carft.verdict", "carft.verdict_state"),
    }
)
SENT_AT_EACH_END = ("sweep", "arm")
"""Kinds of the runs in MLflow that get their values anew whenever the sweep ends."""
UPLOADING = ".artifact.uploading."
"""Beginning of the name of a file that MLflow's server was storing when it was killed."""
Breach = tuple[str, str]
"""The name of the broken law, and how it is broken."""


def seconds_spent(home: Path) -> float:
    """Return the seconds that a driver starting now would count as spent. Raises RequestError where
    the ledger is damaged."""
    ledger = newest_generation(Home(home), NAME)
    return 0.0 if ledger is None else float(ledger.recall(SECONDS, 0.0))


def read_end(home: Path) -> dict[str, Any]:
    """Return a sweep's result as plain data: trials by point, other runs, the comparison."""
    ledger = find_ledger(Home(home), NAME)
    beside = map(attrgetter("role", "algorithm", "params", "runs"), ledger.beside_trials())
    return {
        "trials": [_trial(trial) for trial in _trials_of_file(ledger)],
        "beside": [[role, name, dict(params), dict(runs)] for role, name, params, runs in beside],
        "comparison": _read(home / "sweeps" / NAME / "comparison.json") or {},
    }


def _trials_of_file(ledger: Ledger) -> list[Trial]:
    """Return the trials that the sweep file, which may have been shortened, still includes."""
    return [setting.trial for setting in ledger.settings() if setting.trial is not None]


def _trial(trial: Trial) -> dict[str, Any]:
    reports = {str(epoch): value for epoch, value in sorted(trial.reports.items())}
    ended = {"state": trial.state, "values": [*trial.values], "runs": dict(trial.runs)}
    return {"params": dict(trial.params), **ended, "reports": reports}


def _read(file: Path) -> Any:
    """Read a file of JSON; None where there is none, or it is damaged."""
    with suppress(OSError, ValueError):
        return json.loads(file.read_text())
    return None


def compare(file: Mapping[str, Any], home: Path, undisturbed: dict[str, Any]) -> Iterator[Breach]:
    """Compare a sweep's result with the undisturbed one; yield breaches. `file` is the last."""
    ledger, end = find_ledger(Home(home), NAME), read_end(home)
    generations = [*ledger.earlier, ledger]
    for before, after in itertools.pairwise(generations):
        if _measuring(before.spec) == _measuring(after.spec):
            yield "generations", f"generation {after.generation} is not called for"
    yield from _wrong_values(ledger, home)
    points, wanted = ([trial["params"] for trial in side["trials"]] for side in (end, undisturbed))
    if len(points) != len(wanted):
        yield "points", f"{len(points)} trials, {len(wanted)} undisturbed"
    is_one_at_a_time = file["parallel"] == 1
    if file["method"] in ADAPTIVE and (len(generations) > 1 or not is_one_at_a_time):
        for number, (own, point) in enumerate(zip(_carried(generations), points, strict=False)):
            if own != point:
                yield "points", f"point {number} is {point}, carried was {own}"
        return
    if points != wanted:
        for line in differing(wanted, points, ""):
            yield "points", line
        return
    if not is_one_at_a_time and "early_terminate" in file:
        return  # what is pruned depends on who is first
    if "early_terminate" in file:  # what is pruned keeps the epochs of whoever trained it
        for side in (end, undisturbed):
            side["comparison"].pop("budgets", None)
    if len(generations) > 1:  # a run that was trained for an earlier one reports no epoch again
        for trial in (*end["trials"], *undisturbed["trials"]):
            trial["reports"] = {}
    for law, part in (("values", "trials"), ("values", "beside"), ("comparison", "comparison")):
        for line in differing(undisturbed[part], end[part], f"{part} "):
            yield law, line


def _measuring(spec: Mapping[str, Any]) -> Any:
    """Return the part of a spec whose change gives trials new values."""
    return spec["seeds"], spec["trial"].get("eval")


def _carried(generations: Sequence[Ledger]) -> list[Mapping[str, Any]]:
    """Return the points with which the last generation must begin."""
    carried: list[Mapping[str, Any]] = []
    for ledger in generations[:-1]:
        own = [dict(trial.params) for trial in ledger.trials()]
        carried = [*own, *carried[len(own) :]]
    return carried


def _wrong_values(ledger: Ledger, home: Path) -> Iterator[Breach]:
    """Yield each run whose metrics are not those of its config and seed undisturbed, and each trial
    whose value is not the mean of its runs."""
    values: dict[str, float] = {}
    for item in ledger.settings():
        is_pruned = item.trial is not None and item.trial.state == "pruned"
        for digest in () if is_pruned else item.runs.values():
            folder = home / "runs" / digest
            claimed = _read(folder / "config.json")
            if claimed is None or not (folder / "trained.json").exists():
                yield "values", f"{item.role} {item.params}: {digest[:12]} is not there"
                continue
            values[digest] = _weight_of(claimed["config"], claimed["seed"], home)
            merges = () if item.algorithm == "zero_shot" else item.merges
            for label in (chain_core.UNMERGED, *merges):
                wanted = chain_core.merged_weight(values[digest], label)
                evaluation = _read(folder / "evaluations" / label / "metrics.json")
                measured = evaluation and evaluation["metrics"]["id/val/top1"]
                if measured != wanted:
                    run = f"{item.role} {digest[:12]} {label}"
                    yield "values", f"{run}: {measured}, undisturbed {wanted}"
    for trial in _trials_of_file(ledger):
        if trial.state == "complete":
            runs = [values.get(digest, 0.0) for digest in trial.runs.values()]
            if [*trial.values] != [sum(runs) / len(runs)]:
                yield "values", f"trial {trial.number}: {trial.values}, runs {runs}"
            if [*trial.runs] != [str(seed) for seed in ledger.spec["seeds"]]:
                yield "values", f"trial {trial.number} has the seeds {[*trial.runs]}"


def _weight_of(config: Mapping[str, Any], seed: int, home: Path) -> float:
    algorithm = config["algorithm"]
    if algorithm["name"] == "zero_shot":
        return chain_core.ZERO_SHOT
    if "members" not in algorithm:
        return chain_core.final_weight(config, seed)
    claims = [_read(home / "runs" / name / "config.json") for name in algorithm["members"]]
    weights = [chain_core.final_weight(claim["config"], claim["seed"]) for claim in claims]
    return sum(weights) / len(weights)


def compare_mlflow(database: Path, new: Path, verdict: str) -> Iterator[Breach]:
    """Compare MLflow with a new database that was sent the same home, and its verdict with that of
    the sweep; yield breaches."""
    wanted, stored = mlflow_runs(new), mlflow_runs(database)
    sweep = [run for run in stored.get(f"sweep//{NAME}", ()) if run["stage"] == "active"]
    for run in sweep:
        if (tag := run["tags"].get("carft.verdict", "")) != verdict:
            yield "mlflow", f"the verdict {tag!r}, in comparison.json {verdict!r}"
    for name, (run,) in wanted.items():
        active = [own for own in stored.get(name, ()) if own["stage"] == "active"]
        if len(active) != 1:
            yield "mlflow", f"{name}: {len(active)} runs"
            continue
        series = run["series"]
        run["series"], active[0]["series"] = (
            {key: points for key in side if (points := _points(side[key], series.get(key, ())))}
            for side in (series, active[0]["series"])
        )
        for line in differing(run, active[0], name):
            yield "mlflow", line
    for name, runs in stored.items():
        if any((run["status"], run["stage"]) == ("RUNNING", "active") for run in runs):
            yield "mlflow", f"{name} is left running"


def _points(series: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
    """Return the points (step, value) of a series at the steps of `wanted`, each once: a run that
    was trained again has them at other times.

    MLflow deletes no metric: it still has those of alphas and baselines that the last file dropped.
    """
    steps = {step for step, _ in wanted}
    return [*map(list, dict.fromkeys((step, value) for step, value in series if step in steps))]


def compare_study(home: Path) -> Iterator[Breach]:
    """Compare the Optuna study with the ledger; yield breaches."""
    import optuna

    ledger = find_ledger(Home(home), NAME)
    name = study_name(Home(home), NAME, ledger.generation)
    try:
        trials = optuna.load_study(study_name=name, storage=open_storage(Home(home))).trials
    except Exception as error:  # whatever Optuna and SQLAlchemy raise
        yield "study", f"{type(error).__name__}: {error}"
        return
    states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    wanted = [[own.point, states.get(own.state), [*own.values]] for own in ledger.proposals()]
    values = {trial.number: trial.values for trial in trials if trial.state.name == "COMPLETE"}
    in_study = [
        [trial.user_attrs["point"], trial.state.name, values.get(trial.number) or []]
        for trial in trials
    ]
    for line in differing(wanted, in_study, "trials "):
        yield "study", line


def trained_twice(lines: Sequence[str]) -> Iterator[str]:
    """Yield each epoch that was trained needlessly, by the lines that `chain_core` has logged."""
    last: dict[str, int] = {}
    ends: dict[str, str] = {}
    """Digest to how its last attempt ended: `trained`, `stops`, or that it `begins`."""
    unclean: set[str] = set()
    for line in lines:
        digest, verb, *number = line.split()
        if verb == "damaged":
            last.pop(digest, None)
            ends.pop(digest, None)
        elif verb == "epoch":
            epoch = int(number[0])
            least = last.get(digest, -1) + 1
            # Checkpoints lie two epochs apart, and an epoch is noted before it is trained.
            least -= 2 if digest in unclean else 0
            if ends.get(digest) == "trained":
                yield f"{digest[:12]}: epoch {epoch} of a finished run"
            elif epoch < least:
                yield f"{digest[:12]}: epoch {epoch} behind {last[digest]}"
            last[digest] = epoch
            unclean.discard(digest)
        elif ends.get(digest) != "trained":
            if verb == "begins" and ends.get(digest) == "begins":
                unclean.add(digest)
            ends[digest] = verb


def differing(wanted: Any, other: Any, where: str) -> Iterator[str]:
    """Yield a line for each place where plain data `wanted` (undisturbed) and `other` differ."""
    if isinstance(wanted, dict) and isinstance(other, dict):
        for key in sorted({*wanted, *other}, key=str):
            yield from differing(wanted.get(key, "-"), other.get(key, "-"), f"{where}/{key}")
    elif isinstance(wanted, list) and isinstance(other, list) and len(wanted) == len(other):
        for index, (a, b) in enumerate(zip(wanted, other, strict=True)):
            yield from differing(a, b, f"{where}[{index}]")
    elif str(wanted) != str(other):  # NaN is NaN
        yield f"{where}: {str(wanted)[:200]} undisturbed, {str(other)[:200]} here"


def mlflow_runs(database: Path) -> dict[str, Any]:
    """Return lists of a database's runs by kind, digest and name: two in one list are doubles."""
    with closing(sqlite3.connect(database)) as connection:
        columns = "run_uuid, name, status, end_time, lifecycle_stage"
        entries = {
            run: {
                "name": name,
                "status": status,
                "has ended": ended is not None,
                "stage": stage,
                "artifacts": sorted(
                    file.name
                    for file in database.parent.glob(f"*artifacts/**/{run}/artifacts/*")
                    if not file.name.startswith(UPLOADING)
                ),
                "params": {},
                "tags": {},
                "series": {},
            }
            for run, name, status, ended, stage in connection.execute(f"SELECT {columns} FROM runs")
        }
        for run, key, value in connection.execute("SELECT run_uuid, key, value FROM params"):
            entries[run]["params"][key] = value
        for run, key, value in connection.execute("SELECT run_uuid, key, value FROM tags"):
            if key in TAGS and value:
                entries[run]["tags"][key] = value
        points = connection.execute(
            "SELECT run_uuid, key, step, value FROM metrics ORDER BY key, step, timestamp, value"
        )
        for run, key, step, value in points:
            if key.startswith(TIMED):
                continue
            series = entries[run]["series"].setdefault(key, [])
            if entries[run]["tags"].get("carft.kind") in SENT_AT_EACH_END and series:
                series.clear()  # MLflow shows the last one
            series.append([step, repr(value)])
    by_name: dict[str, list[Any]] = {}
    for entry in entries.values():
        tags = entry["tags"]
        key = "/".join([tags.get("carft.kind", ""), tags.get("carft.run", ""), entry["name"]])
        by_name.setdefault(key, []).append(entry)
    return by_name
