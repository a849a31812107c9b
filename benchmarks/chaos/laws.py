"""What a sweep has left, everywhere, in a form in which two executions of it are equal."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.files import read_json, read_lines
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.study import open_storage, study_name
from carft_sweep.sweeps.ledger.trials import LEDGER_FILE, find_ledger, read_generations

TIMED = ("system/", "train/seconds")
"""Beginnings of the metrics that no two executions have alike."""
TAGS = frozenset(
    {
        *("carft.kind", "carft.run", "carft.sweep", "carft.state", "carft.trial"),
        *("carft.failure", "carft.role", "carft.verdict", "carft.verdict_state"),
    }
)
FINAL = ("complete", "failed", "pruned")
SENT_AT_EACH_END = ("sweep", "arm")
"""Kinds of the runs in MLflow that get their values anew whenever the sweep ends."""
UPLOADING = ".artifact.uploading."
"""Beginning of the name of what a server of MLflow's was about to store when it was killed."""
_RANDOM = re.compile(r"(?<=/sent/)[^/.]+|\b(?:m-)?[0-9a-f]{32}\b")


def snapshot(home: Path, name: str, database: Path | None = None) -> dict[str, Any]:
    """Read everything that a sweep which has ended left behind, as plain data.

    `database` is MLflow's, the home's own if it is left out. What `clean` removes is removed.
    """
    place = Home(home)
    told: dict[str, Any] = {"broken": [*_broken(place, name)]}
    told["ledger"] = _ledger(place, name)
    told["study"] = _study(place, name)
    told["mlflow"] = _mlflow(database or home / "mlflow.db")
    told["compare"] = json.loads(_printed("compare", name, "--json", "--home", str(home)))
    told["list"] = [
        {key: value for key, value in summary.items() if key != "updated"}
        for summary in json.loads(_printed("list", "--json", "--home", str(home)))
    ]
    cleaned = json.loads(_printed("clean", "--yes", "--json", "--home", str(home)))
    told["cleaned"] = len(cleaned["items"])
    told["files"] = _files(home)
    told["metrics"] = _metrics(place)
    return told


def differences(reference: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List what an execution has otherwise than the undisturbed one, a line each."""
    lines = [*other["broken"]]
    for part in ("ledger", "study", "mlflow", "compare", "list", "files", "metrics"):
        lines += [f"{part}: {line}" for line in _differing(reference[part], other[part], "")]
    return lines


def _differing(one: Any, other: Any, where: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}, key=str):
            yield from _differing(one.get(key, "-"), other.get(key, "-"), f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differing(a, b, f"{where}[{index}]")
    elif str(one) != str(other):  # NaN is NaN
        yield f"{where}: {str(one)[:200]} undisturbed, {str(other)[:200]} here"


def _broken(home: Home, name: str) -> Iterator[str]:
    """Yield the laws that hold for one execution by itself and do not hold here."""
    lines = [json.loads(line) for line in read_lines(home.sweep(name) / LEDGER_FILE)]
    trials = [line["trial"] for line in lines if "trial" in line]
    proposed = Counter(trial["number"] for trial in trials if "point" in trial)
    ended = Counter(trial["number"] for trial in trials if trial.get("state") in FINAL)
    for number in sorted({*proposed, *ended}):
        if (proposed[number], ended[number]) != (1, 1):
            yield (
                f"ledger: trial {number} was proposed {proposed[number]} times, and ended "
                f"{ended[number]} times"
            )
    if len(read_generations(home.sweep(name) / LEDGER_FILE)) != 1:
        yield "ledger: more than one generation"
    runs = RunStore(home.runs)
    for digest in runs.digests():
        state = runs.read(digest)
        if state is None or state.state not in ("done", "failed", "stopped") or state.lease:
            yield f"run {digest[:12]}: {state}"
        log = runs.folder(digest) / "log.txt"
        marks = log.read_text(errors="replace").splitlines() if log.exists() else []
        ends = [index for index, mark in enumerate(marks) if mark == "trained to the end"]
        if len(ends) > 1 or (ends and any(" epoch=" in mark for mark in marks[ends[0] :])):
            yield f"run {digest[:12]} was trained again behind its end"


def _ledger(home: Home, name: str) -> dict[str, Any]:
    ledger = find_ledger(home, name)
    runs = RunStore(home.runs)
    trials = {}
    for trial in ledger.proposals():
        states = {seed: runs.read(digest) for seed, digest in trial.runs.items()}
        trials[trial.number] = {
            "point": trial.point,
            "params": dict(trial.params),
            "state": trial.state,
            "values": [*trial.values],
            "reason": trial.reason and dict(trial.reason),
            "reports": {str(epoch): value for epoch, value in sorted(trial.reports.items())},
            "digests": dict(trial.runs),
            "runs": {seed: state and state.state for seed, state in states.items()},
        }
    beside = [
        (item.role, item.algorithm, dict(item.params), dict(item.runs))
        for item in ledger.beside_trials()
    ]
    return {"trials": trials, "beside": [str(item) for item in beside]}


def _study(home: Home, name: str) -> list[dict[str, Any]]:
    import optuna

    study = optuna.load_study(study_name=study_name(home, name, 1), storage=open_storage(home))
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "values": trial.values,
            "params": trial.params,
            "reports": {str(k): v for k, v in sorted(trial.intermediate_values.items())},
        }
        for trial in study.trials
    ]


def _mlflow(database: Path) -> dict[str, Any]:
    """Return every run by its name, as the database has it: those with one name are doubles."""
    with closing(sqlite3.connect(database)) as connection:
        runs = connection.execute(
            "SELECT run_uuid, name, status, end_time, lifecycle_stage FROM runs"
        )
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
            for run, name, status, ended, stage in runs
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
    found: dict[str, list[Any]] = {}
    for entry in entries.values():
        tags = entry["tags"]
        key = "/".join([tags.get("carft.kind", ""), tags.get("carft.run", ""), entry["name"]])
        found.setdefault(key, []).append(entry)
    return found


def _files(home: Path) -> dict[str, int]:
    """Count the files by name; names that are drawn at random are alike."""
    names = (
        _RANDOM.sub("#", str(Path(folder, file).relative_to(home)))
        for folder, folders, files in os.walk(home)
        for file in (*files, *(f"{empty}/" for empty in folders))
    )
    skipped = ("mlartifacts", "mlflow", "sweeps/.lock")
    counts = Counter(name for name in names if not name.startswith(skipped))
    runs = RunStore(Home(home).runs)
    for digest in runs.digests():
        state = runs.read(digest)
        if state is not None and state.state == "stopped":
            # A run that is pruned is not gone on with, whether or not it came to a checkpoint.
            counts.pop(f"runs/{digest}/checkpoint.pt", None)
    return dict(counts)


def _metrics(home: Home) -> dict[str, Any]:
    """Return what was measured of every model, and each epoch's values."""
    runs, found = RunStore(home.runs), {}
    for digest in runs.digests():
        folder = runs.folder(digest)
        for file in sorted(folder.glob("evaluations/*/metrics.json")):
            found[f"{digest[:12]} {file.parent.name}"] = read_json(file)["metrics"]
        found[f"{digest[:12]} history"] = [
            {k: v for k, v in report["metrics"].items() if not k.startswith(TIMED)}
            for report in read_json(folder / "history.json") or []
        ]
    return found


def _printed(*command: str) -> str:
    out = StringIO()
    with redirect_stdout(out):
        code = main(command)
    if code:
        raise RuntimeError(f"carft-sweep {' '.join(command)} exited with {code}")
    return out.getvalue()
