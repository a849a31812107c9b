"""Random histories of a sweep: changes of its file, crashes and damage, against no disturbance.

    python -m benchmarks.chaos.histories --count 500 --seed 1 --engine local|ray --workers 2
    python -m benchmarks.chaos.histories --seed 1 --only 437     # one of them, with what it printed

A history draws a sweep file, and then some steps. In each the file is changed or not, projections
and run folders are damaged by hand or not, and `run` or `resume` ends, dies at some write, is
interrupted, loses workers, or has a busy driver. At last `run` executes the last file to its end.
Training is simulated (`chain_core`); commands, driver, workers, ledger and databases are real.
What a seed and a number draw is the same each time; threads and workers have their own pace.

The laws are in `history_laws`.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.chaos import chain_core, history_laws, processes
from benchmarks.chaos.history_laws import NAME, Breach, differing
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.tracking.report.published_zero_shot import published_table

LIMIT = 180.0
"""Seconds that a step may take."""
SILENCE, BUSY = 4.0, 5.0
"""Seconds of silence that end a worker, which beats every two; and how long a driver is busy."""
WITH_MLFLOW = 0.4
"""Share of the histories with a real MLflow database; the others have a tracker in memory."""
OFTEN = 0.05
"""Seconds between two updates of a projection: few, so that a death can hit one."""
PATIENCE = 3.0
"""Seconds that the end of a sweep waits for a database that is damaged."""
TRAINED = "trained.txt"
"""The file of a home that lists what was really trained (`chain_core.LOG`)."""
SPENT = 0.001
"""A time budget, in seconds, that is used up at once."""
GARBAGE = "{garbage"
BAD_MERGE = '''"""A merge whose label the ledger cannot keep."""

from carft_sweep import MERGES
from carft_sweep.carft_core.merges.base import Merge, MergePoint


@MERGES.register
class Halves(Merge):
    """Registered, or refused."""

    name = "halves"
    summary = "A merge with a label that cannot be a folder"

    def points(self):
        """One."""
        return (MergePoint("halves@a/b", 500, {}),)
'''

File = dict[str, Any]
Violations = dict[str, list[str]]
"""Messages by the name of the broken law."""


@dataclass(frozen=True)
class Fate:
    """How an execution ends."""

    kind: str = "ends"
    """`ends`, `dies`, `interrupted`, `busy` or `loses workers`."""
    where: str = ""
    """The kind of write, or the driver's method that takes long."""
    skip: int = 0
    """How many such writes or calls pass before."""
    when: str = "before"
    """`before` or `behind` the write, or at `half` of it."""

    def __str__(self) -> str:
        if self.kind == "busy":
            return f"its driver is busy in {self.where} number {self.skip}"
        if self.where:
            return f"{self.kind} {self.when} write {self.skip} of {self.where}"
        return self.kind


@dataclass(frozen=True)
class Step:
    """One execution of `run` or `resume`, with the changes and damages before it."""

    file: File
    changes: tuple[str, ...] = ()
    damages: tuple[str, ...] = ()
    verb: str = "run"
    fate: Fate = Fate()

    def __str__(self) -> str:
        return "; ".join([*self.changes, *self.damages, f"{self.verb}: {self.fate}"])


@dataclass(frozen=True)
class History:
    """All that is done with one sweep, drawn by the history's number."""

    number: int
    way: str
    """`in process`, `one worker`, `two workers` or `ray`."""
    has_mlflow: bool
    steps: tuple[Step, ...]
    damages: tuple[str, ...]
    """Damages after the last step, before `sync`."""

    @property
    def file(self) -> File:
        """The last sweep file."""
        return self.steps[-1].file

    def describe(self) -> str:
        """Return the steps as text."""
        store = "MLflow" if self.has_mlflow else "no MLflow"
        lines = [f"history {self.number}, {self.way}, {store}"]
        lines += [f"  {json.dumps(brief(self.steps[0].file))}"]
        lines += [f"  {index}. {step}" for index, step in enumerate(self.steps)]
        return "\n".join([*lines, f"  at last: {', '.join((*self.damages, 'sync'))}"])


def brief(file: Mapping[str, Any]) -> File:
    """Return the drawn part of a sweep file."""
    same = ("name", "engine", "resources", "report", "breaker")
    return {key: value for key, value in file.items() if key not in same}


def draw_history(seed: int, number: int, engine: str, data: Mapping[str, Any]) -> History:
    """Draw the history with the number `number`."""
    chance = random.Random(f"{seed} {number}")
    way = "ray" if engine == "ray" else chance.choices(WAYS, (5, 3, 2))[0]
    has_mlflow = chance.random() < WITH_MLFLOW
    file = draw_file(chance, way, data)
    steps = [Step(file, fate=draw_fate(chance, way, at_least=1.0))]
    for _ in range(chance.randint(1, 4)):
        before, (changed, file) = file, draw_changes(chance, file)
        verb = "resume" if chance.random() < (0.1 if changed else 0.5) else "run"
        damages = draw_damages(chance, has_mlflow, run_damages(file))
        steps.append(Step(file, changed, damages, verb, draw_fate(chance, way)))
        if changed == ("a merge that is refused",):
            file = before
    changed, file = draw_changes(chance, file) if chance.random() < 0.5 else ((), file)
    if changed == ("a merge that is refused",) or file.get("time_budget") == SPENT:
        changed, file = (*changed, "back to a file that can end"), able_to_end(file)
    damages = draw_damages(chance, has_mlflow, run_damages(file))
    steps.append(Step(file, changed, damages))
    return History(number, way, has_mlflow, tuple(steps), draw_damages(chance, has_mlflow, ()))


WAYS = ("in process", "one worker", "two workers")
SPACES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "algorithm.kl_weight": ({"values": [0.1, 0.3, 0.5]}, {"min": 0.0, "max": 1.0}),
    "optim.lr": (
        {"values": [0.0001, 0.001]},
        {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
    ),
    "optim.clip": ({"values": [None, 1.0]}, {"values": [None, 1.0]}),
    "optim.warmup": (
        {"values": [0.0, 0.1], "when": {"optim.clip": 1.0}},
        {"values": [0.0, 0.1], "when": {"optim.clip": 1.0}},
    ),
}
"""For each field how it varies in a grid, and in a search."""
SEEDS = ([0], [0, 1], [1, 0], [0, 1, 2], [2])
BASELINES: Sequence[list[str]] = ([], ["zero_shot"], ["zero_shot", "fine_tune"], ["fine_tune"])
ALPHAS = ([0.5], [0.25, 0.5], [0.75], [0.0, 1.0])


def draw_file(chance: random.Random, way: str, data: Mapping[str, Any]) -> File:
    """Draw a sweep file."""
    methods = ("grid", "random", "qmc", "tpe", "gp", "nsga2")
    method = chance.choices(methods, (6, 3, 3, 5, 1, 3))[0]
    names = chance.sample([*SPACES][:3], chance.randint(1, 3))
    if "optim.clip" in names and len(names) < 3 and chance.random() < 0.5:
        names.append("optim.warmup")
    form = 0 if method == "grid" else 1
    file: File = {
        "name": NAME,
        "method": method,
        "parameters": {name: SPACES[name][form] for name in names},
        "seeds": chance.choice(SEEDS),
        "baselines": chance.choice(BASELINES),
        "engine": "ray" if way == "ray" else "local",
        "parallel": 2 if way == "two workers" or (way == "ray" and chance.random() < 0.4) else 1,
        "resources": {"cpus": 1},
        "report": {"page": False, "model": False},
        "breaker": 0,
        "retries": {"crashed": 5},
        "trial": {
            "algorithm": {"name": "car_ft"},
            "data": dict(data),
            "optim": {"epochs": 5},
            "merges": [{"name": "wise_ft", "alphas": chance.choice(ALPHAS)}],
            "device": "cpu",
        },
    }
    if method != "grid" or chance.random() < 0.3:
        file["run_cap"] = chance.randint(3, 7)
    if chance.random() < 0.25:
        rules = [{"type": "asha", "reduction_factor": 2}, {"type": "median", "startup_trials": 2}]
        file["early_terminate"] = {**chance.choice(rules), "allow_grid": True}
    for draw in (CHANGES["confirm_seeds"], CHANGES["after"]):
        if chance.random() < 0.25:
            draw(chance, file)
    if chance.random() < 0.1:
        file["time_budget"] = "1h"
    return file


def _change_order(chance: random.Random, file: File) -> None:
    names = [*file["parameters"]]
    chance.shuffle(names)
    file["parameters"] = {name: file["parameters"][name] for name in names}


def _change_merges(chance: random.Random, file: File) -> None:
    file["trial"]["merges"] = [{"name": "wise_ft", "alphas": chance.choice(ALPHAS)}]


def _change_eval(chance: random.Random, file: File) -> None:
    file["trial"]["eval"] = {"batch_size": chance.choice([64, 128, 256])}


def _set(key: str, values: Sequence[Any]) -> Callable[[random.Random, File], None]:
    """Return a change that gives a key one of `values`; None removes the key."""

    def change(chance: random.Random, file: File) -> None:
        value = chance.choice(values)
        file.pop(key, None)
        if value is not None:
            file[key] = value

    return change


CHANGES: Mapping[str, Callable[[random.Random, File], None]] = {
    "order of parameters": _change_order,
    "seeds": _set("seeds", SEEDS),
    "selection": _set("selection", [None, {"within": 0.02}, {"within": 0.3}, "oracle"]),
    "time_budget": _set("time_budget", [None, "1h", "2h", SPENT]),
    "baselines": _set("baselines", BASELINES),
    "run_cap": _set("run_cap", [2, 3, 4, 5, 6, 8]),
    "merges": _change_merges,
    "description": _set("description", ["one", "another"]),
    "retries": _set("retries", [{"crashed": 5}, {"crashed": 7}]),
    "confirm_seeds": _set("confirm_seeds", [None, [7], [7, 8]]),
    "after": _set("after", [None, [{"algorithm": "uniform_soup", "of": "car_ft"}]]),
    "trial.eval": _change_eval,
}


OFTENER = {"seeds": 3, "order of parameters": 2, "selection": 2, "run_cap": 2}
"""Weights of the changes that decide most what is still to be run; others have 1."""


def draw_changes(chance: random.Random, file: File) -> tuple[tuple[str, ...], File]:
    """Draw up to two changes of a file, one and back, or a refused merge; return names and file."""
    kind = chance.choices(("none", "one", "two", "back", "refused"), (30, 40, 20, 7, 3))[0]
    if kind == "none":
        return (), file
    changed: File = json.loads(json.dumps(file))
    if kind == "refused":
        changed["import"] = ["refused.py"]
        changed["trial"]["merges"] = [{"name": "halves"}]
        return ("a merge that is refused",), changed
    weights = [OFTENER.get(name, 1) for name in CHANGES]
    names = chance.choices([*CHANGES], weights, k=2 if kind == "two" else 1)
    for name in names:
        CHANGES[name](chance, changed)
    if kind == "back":
        return (*names, "and back"), file
    shown = (f"{name}={_value_of(changed, name)}" for name in names)
    return tuple(shown), changed


def _value_of(file: File, name: str) -> str:
    if name == "order of parameters":
        return ", ".join(file["parameters"])
    section = file["trial"] if name in ("merges", "trial.eval") else file
    return json.dumps(section.get(name.removeprefix("trial.")))


def able_to_end(file: File) -> File:
    """Return a sweep file without what keeps the sweep from its end."""
    changed: File = json.loads(json.dumps(file))
    changed.pop("time_budget", None)
    if changed.pop("import", None):
        changed["trial"]["merges"] = [{"name": "wise_ft", "alphas": [0.5]}]
    return changed


WRITES = {"ledger": 24, "run": 60, "sent": 30, "mlflow": 60, "study": 20, "sweep": 10}
"""For each kind of write, how many may pass before a death."""
METHODS = ("next_job", "started", "alive", "reported", "finished")


def draw_fate(chance: random.Random, way: str, at_least: float = 0.6) -> Fate:
    """Draw how an execution ends: disturbed with the probability `at_least`, else by itself."""
    if chance.random() > at_least:
        return Fate()
    kind = chance.choices(
        ("dies", "interrupted", "loses workers", "busy"),
        (60, 15, 15, 0 if way == "in process" else 6),
    )[0]
    if kind == "loses workers":
        return Fate(kind)
    if kind == "busy":
        return Fate(kind, chance.choice(METHODS), chance.randrange(6))
    where = chance.choices([*WRITES], (8, 5, 2, 2, 2, 2))[0]
    # Early ones oftener: there are few of them in a step that has little to do.
    skip = int(WRITES[where] * chance.random() ** 2)
    whens = ("before", "behind", "half") if where in ("ledger", "sent") else ("before", "behind")
    when = "before" if kind == "interrupted" else chance.choice(whens)
    return Fate(kind, where, skip, when)


SWEEP_DAMAGES = (
    *("optuna.db deleted", "optuna.db garbage", "comparison.json deleted"),
    "comparison.json garbage",
)
STORE_DAMAGES = (
    *("mlflow.db deleted", "a run deleted in MLflow", "artifacts deleted"),
    *("sent deleted", "sent garbage", "sent half a line"),
)


def run_damages(file: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ways in which runs can be damaged. Where trials are terminated early no run folder
    is deleted: other trials are judged by its epochs."""
    damages = ("metrics.json damaged", "a run folder deleted")
    return damages[:1] if "early_terminate" in file else damages


def draw_damages(
    chance: random.Random, has_mlflow: bool, more: Sequence[str], share: float = 0.3
) -> tuple[str, ...]:
    """Draw up to two damages by hand, of the usual kinds and `more`; any, in `share` of draws."""
    kinds = (*SWEEP_DAMAGES, *(STORE_DAMAGES if has_mlflow else ()), *more)
    count = chance.choices((0, 1, 2), (1 - share, share * 0.7, share * 0.3))[0]
    return tuple(dict.fromkeys(chance.choices(kinds, k=count)))


class Scene:
    """The folder of one history: its sweep file, its homes, and the list of what was trained."""

    def __init__(self, folder: Path, templates: Path, address: str | None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.home, self.address = folder, folder / "home", address
        self.file, self.output = folder / f"{NAME}.yaml", folder / "output.txt"
        # Workers on Ray have the variables with which their node was started.
        plan = folder / "plan.json" if address is None else Path(os.environ[chain_core.FAULTS])
        self.plan, self.trained = plan, self.home / TRAINED
        self.orders: list[Sequence[str]] = []
        """Order of the parameters in each file with which a ledger was begun or continued."""
        (folder / "refused.py").write_text(BAD_MERGE)
        for home in (self.home, folder / "undisturbed"):
            shutil.copytree(templates, home)
        self.trained.touch()

    def write(self, file: Mapping[str, Any]) -> None:
        """Write the sweep file."""
        self.file.write_text(json.dumps(file, indent=1))

    def words(self, verb: str, way: str) -> list[str]:
        """Return the words `run FILE` or `resume NAME`, with a history's engine as options."""
        words = [verb, str(self.file) if verb == "run" else NAME]
        words += ["--in-process"] if way == "in process" else []
        return words + (["--address", self.address] if self.address is not None else [])

    def fork(
        self, act: Callable[[], Any], rates: Mapping[str, float] | None = None
    ) -> tuple[int | None, Any]:
        """Call `act` in a fork, with the faults `rates`; return its exit code (None after `LIMIT`)
        and what `act` returned (None if it did not)."""
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        self.plan.write_text(json.dumps(rates or {}))

        def write() -> int:
            result.write_text(json.dumps(act()))
            return 0

        pid = processes.fork(write, self.output, {chain_core.FAULTS: str(self.plan)})
        until = time.monotonic() + LIMIT
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None, None
            time.sleep(0.005)
        returned = json.loads(result.read_text()) if result.exists() else None
        return os.waitstatus_to_exitcode(ended[1]), returned


def disturb(fate: Fate) -> None:
    """Patch this process, a fork, so that the driver that it runs ends by `fate`."""
    import carft_sweep.sweeps.scheduler.session as session
    from carft_sweep.sweeps.scheduler.driver import SweepDriver

    session.PACE, session.PATIENCE = OFTEN, PATIENCE
    passed = 0

    def is_due(where: str, when: str) -> bool:
        nonlocal passed
        if (where, when) != (fate.where, fate.when):
            return False
        passed += 1
        return passed == fate.skip + 1

    def at(where: str, when: str) -> None:
        if is_due(where, when):
            number = signal.SIGKILL if fate.kind == "dies" else signal.SIGINT
            os.kill(os.getpid(), number)

    if fate.kind == "busy":
        _listen_for(SILENCE)
        method = getattr(SweepDriver, fate.where)

        def slowly(driver: SweepDriver, *arguments: Any) -> Any:
            if is_due(fate.where, "before"):
                time.sleep(BUSY)
            return method(driver, *arguments)

        setattr(SweepDriver, fate.where, slowly)
    elif fate.where:
        watch_writes(at)


def _listen_for(seconds: float) -> None:
    """Make the engines of this process give up a worker that is silent for `seconds`."""
    import carft_sweep.sweeps.engines.factory as factory
    import carft_sweep.sweeps.engines.ray_tune as ray_tune

    ray_tune.GRACE = 1.0
    for module, name in ((factory, "LocalEngine"), (ray_tune, "RayEngine")):
        setattr(module, name, functools.partial(getattr(module, name), silence=seconds))


def watch_writes(at: Callable[[str, str], None]) -> None:
    """Call `at(kind of file, when)` at each write: `before`, `behind`, or at `half` of it."""
    import threading

    from sqlalchemy.engine.default import DefaultDialect

    import carft_sweep.carft_core.files as files
    import carft_sweep.sweeps.ledger.ledger as ledger
    import carft_sweep.sweeps.ledger.optuna_copy as study
    import carft_sweep.sweeps.results.sent_log as sent_log

    append, write_atomically = files.append_lines, files.write_atomically
    commit: Callable[..., None] = DefaultDialect.do_commit

    def appended(path: Path, lines: Any, *, durable: bool = True) -> None:
        kind, data = kind_of(path), [*lines]
        at(kind, "before")
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            file.write("\n".join(data).encode()[: 1 + len("".join(data)) // 2])
            at(kind, "half")
            file.truncate(size)
        append(path, data, durable=durable)
        at(kind, "behind")

    def written(path: Path, write: Callable[[Path], object]) -> None:
        at(kind_of(path), "before")
        write_atomically(path, write)
        at(kind_of(path), "behind")

    def committed(dialect: DefaultDialect, connection: Any) -> None:
        kind = "study" if threading.current_thread().name == "carft-study" else "mlflow"
        at(kind, "before")
        commit(dialect, connection)
        at(kind, "behind")

    files.write_atomically = written
    DefaultDialect.do_commit = committed  # type: ignore[method-assign]
    for module in (ledger, sent_log, study):
        module.append_lines = appended  # type: ignore[attr-defined]


def kind_of(path: Path) -> str:
    """Return the kind of a file, by its place in the home."""
    if "runs" in path.parts:
        return "run"
    if path.name == "ledger.jsonl":
        return "ledger"
    return "sent" if path.parent.name == "sent" else "sweep"


def damage(kind: str, scene: Scene, chance: random.Random) -> bool:
    """Do the damage `kind` to a home, as by hand; return False where nothing is there to damage."""
    home = scene.home
    sweep = home / "sweeps" / NAME
    file = {
        "optuna.db": home / "optuna.db",
        "mlflow.db": home / "mlflow.db",
        "comparison.json": sweep / "comparison.json",
    }.get(kind.partition(" ")[0])
    if file is not None:
        if not file.exists():
            return False
        for own in file.parent.glob(f"{file.name}*"):
            own.unlink()
        if kind.endswith("garbage"):
            file.write_text(GARBAGE)
        return True
    match kind:
        case "a run deleted in MLflow":
            runs: list[Any] = []
            # Its driver may have died before it had made the tables.
            with (
                suppress(sqlite3.DatabaseError),
                closing(sqlite3.connect(home / "mlflow.db")) as database,
                database,
            ):
                runs = database.execute(
                    "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time"
                ).fetchall()
                if runs:
                    deleted = "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?"
                    database.execute(deleted, chance.choice(runs))
            return bool(runs)
        case "artifacts deleted":
            return remove(home / "mlartifacts")
        case "sent deleted":
            return remove(sweep / "sent")
        case "sent garbage" | "sent half a line":
            logs = sorted((sweep / "sent").glob("*.jsonl"))
            for log in logs:
                text = log.read_text()
                log.write_text(GARBAGE if kind == "sent garbage" else text[: len(text) // 2])
            return bool(logs)
    folders = sorted(path.parent for path in (home / "runs").glob("*/config.json"))
    if not folders:
        return False
    folder = chance.choice(folders)
    if kind == "a run folder deleted":
        shutil.rmtree(folder)
    else:
        measured = sorted(folder.glob("evaluations/*/metrics.json"))
        if not measured:
            return False
        chance.choice(measured).write_text(GARBAGE)
    with scene.trained.open("a") as trained:
        trained.write(f"{folder.name} damaged\n")
    return True


def remove(folder: Path) -> bool:
    """Remove a folder; return False where there is none."""
    is_there = folder.exists()
    shutil.rmtree(folder, ignore_errors=True)
    return is_there


@dataclass
class Outcome:
    """The result of one history: broken laws, and counts of what was done."""

    number: int
    violations: Violations = field(default_factory=dict)
    changes: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    """How executions really ended."""
    trials: int = 0
    epochs: int = 0
    seconds: float = 0.0

    def broken(self, law: str, text: str) -> None:
        """Record that a law is broken."""
        self.violations.setdefault(law, []).append(" ".join(text.split())[:500])


def carry_out(history: History, seed: int, scene: Scene) -> Outcome:
    """Carry out all steps of a history, then check what they leave; return the outcome."""
    began, outcome = time.monotonic(), Outcome(history.number)
    spent = 0.0
    for index, step in enumerate(history.steps):
        chance = random.Random(f"{seed} {history.number} {index}")
        scene.write(step.file)
        outcome.changes.update(change.partition("=")[0] for change in step.changes)
        outcome.damages.update(kind for kind in step.damages if damage(kind, scene, chance))
        execute(history, step, scene, outcome)
        try:
            seconds = history_laws.seconds_spent(scene.home)
        except RequestError as error:
            outcome.broken("ledger", f"behind step {index}: {error}")
        else:
            if seconds < spent:
                outcome.broken("ledger", f"{seconds} s spent behind step {index}, {spent} before")
            spent = max(spent, seconds)
    code, undisturbed = scene.fork(functools.partial(run_undisturbed, history, scene))
    if code or undisturbed is None:
        outcome.broken("exit", f"the undisturbed sweep: {code} {_tail(scene)}")
        return outcome
    chance = random.Random(f"{seed} {history.number} end")
    code, result = scene.fork(functools.partial(finish, history, scene, undisturbed, chance))
    if code or result is None:
        outcome.broken("exit", f"the end: {code} {_tail(scene)}")
        return outcome
    for law, text in result["breaches"]:
        outcome.broken(law, text)
    outcome.damages.update(result["damages"])
    outcome.trials = result["trials"]
    lines = scene.trained.read_text().splitlines()
    outcome.epochs = sum(" epoch " in line for line in lines)
    for text in history_laws.trained_twice(lines):
        outcome.broken("trained", text)
    outcome.seconds = time.monotonic() - began
    return outcome


def execute(history: History, step: Step, scene: Scene, outcome: Outcome) -> None:
    """Carry out one step in a fork, and check how it ended."""
    fate = step.fate
    before = scene.output.stat().st_size if scene.output.exists() else 0
    has_begun = (scene.home / "sweeps" / NAME / "sweep.yaml").exists()
    verb = step.verb if has_begun else "run"

    def act() -> int:
        if not history.has_mlflow:
            _have_no_store()
        disturb(fate)
        return processes.command([*scene.words(verb, history.way), "--home", str(scene.home)])

    rates = {"killed": 0.2, "crash": 0.2, "cuda-memory": 0.1}
    code, returned = scene.fork(act, rates if fate.kind == "loses workers" else None)
    output = scene.output.read_text(errors="replace")[before:]
    code = returned if code == 0 else code
    died = code == -signal.SIGKILL
    # In this process there is no worker to lose but the driver.
    may_die = fate.kind == "dies" or (fate.kind, history.way) == ("loses workers", "in process")
    is_refused = step.changes == ("a merge that is refused",) and verb == "run"
    codes = {0, 2} if is_refused else {0}
    codes |= {1, 3} if step.file.get("time_budget") == SPENT else set()
    codes |= {3} if fate.kind == "interrupted" else set()
    codes |= {-signal.SIGKILL} if may_die else set()
    if code not in codes:
        outcome.broken("exit", f"{step}: {code} {output[-400:]}")
    if "Traceback (most recent call last)" in output:
        outcome.broken("exit", f"{step}: {output[output.index('Traceback') :]}")
    for pid in processes.workers_left(chain_core.FAULTS, str(scene.plan)):
        outcome.broken("workers", f"{step}: worker {pid} outlives its driver")
    for line in output.splitlines():
        if "showed no life" in line or "nothing was heard" in line:
            outcome.broken("silence", f"{step}: {line}")
    if (scene.home / "sweeps" / NAME / "ledger.jsonl").exists():
        scene.orders.append([*step.file["parameters"]])
    outcome.fates["died" if died else "interrupted" if code == 3 else f"ended, {fate.kind}"] += 1


def _tail(scene: Scene) -> str:
    return scene.output.read_text(errors="replace")[-600:]


def _have_no_store() -> None:
    import carft_sweep.sweeps.api as api
    from tests.tracking.memory_store import MemoryTracker

    setattr(api, "open_store", lambda *_, **__: MemoryTracker())  # noqa: B010 - a name that it imports


def run_undisturbed(history: History, scene: Scene) -> dict[str, Any]:
    """Run the last file in a fresh home; return its `history_laws.read_end`."""
    _have_no_store()
    home = scene.folder / "undisturbed"
    order = next(iter(scene.orders), [*history.file["parameters"]])
    parameters = {name: history.file["parameters"][name] for name in order}
    file = scene.folder / "undisturbed.yaml"
    file.write_text(json.dumps({**history.file, "parameters": parameters}))
    words = ["run", str(file), "--in-process"]
    code = processes.command([*words, "--home", str(home)])
    if code:
        raise SystemExit(f"it exited with {code}")
    return history_laws.read_end(home)


def finish(
    history: History, scene: Scene, undisturbed: dict[str, Any], chance: random.Random
) -> dict[str, Any]:
    """Check the laws at the end of a history, also by `resume`, `check` and `sync`; return
    breaches, damages and the number of trials."""
    if not history.has_mlflow:
        _have_no_store()
    home = scene.home
    trials = len(history_laws.read_end(home)["trials"])
    breaches = [*history_laws.compare(history.file, home, undisturbed)]
    breaches += _look_for_more(scene)
    verdict = history_laws.read_end(home)["comparison"].get("verdict", "")
    damages = [kind for kind in history.damages if damage(kind, scene, chance)]
    if history.has_mlflow:
        breaches += _sync(scene, verdict)
    return {"breaches": breaches, "damages": damages, "trials": trials}


def _look_for_more(scene: Scene) -> Iterator[Breach]:
    """Check that `list`, `resume` and `check` find nothing left to do; yield breaches."""
    home, before = ["--home", str(scene.home)], history_laws.read_end(scene.home)
    code, out, stderr = processes.captured(["list", "--json", *home])
    states = [summary["state"] for summary in json.loads(out)] if code == 0 else stderr
    if states != ["done"]:
        yield "left", f"list: {states}"
    size = scene.trained.stat().st_size
    code, out, stderr = processes.captured(["resume", NAME, "--in-process", *home])
    if code or scene.trained.stat().st_size != size:
        yield "left", f"resume: {code} {scene.trained.read_text()[size:]} {stderr[-300:]}"
    for line in differing(before, history_laws.read_end(scene.home), ""):
        yield "left", f"resume changed {line}"
    code, out, stderr = processes.captured(
        ["check", str(scene.file), "--json", "--engine", "local", *home]
    )
    if code:
        yield "left", f"check: {code} {stderr}"
        return
    estimate = json.loads(out)
    keys = ("to_train", "to_evaluate", "unknown", "to_confirm", "to_combine", "epochs")
    if to_do := {key: estimate[key] for key in keys if estimate[key]}:
        yield "left", f"check: {to_do}"


def _sync(scene: Scene, verdict: str) -> Iterator[Breach]:
    """Sync the home, and into a new database; compare both, and study with ledger; yield
    breaches."""
    for file in (scene.home / "runs").glob("*/evaluations/*/metrics.json"):
        if file.read_text() == GARBAGE:  # of a run that the last file asks for no more
            file.unlink()
    sync, new = ["sync", "--home", str(scene.home)], scene.home / "new.db"
    code, _, stderr = processes.captured(sync)
    if code:
        yield "mlflow", f"sync: {code} {stderr}"
    shutil.copy(scene.folder / "undisturbed" / "empty.db", new)
    environ = {"MLFLOW_TRACKING_URI": f"sqlite:///{new}"}
    pid = processes.fork(lambda: processes.command(sync), scene.output, environ)
    if os.waitpid(pid, 0)[1]:
        yield "mlflow", f"sync to a new database: {_tail(scene)}"
    else:
        yield from history_laws.compare_mlflow(scene.home / "mlflow.db", new, verdict)
    yield from history_laws.compare_study(scene.home)


def prepare(folder: Path) -> Mapping[str, Any]:
    """Load and patch all that forks need, and make a home's template; return the sweep's `data`."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", chain_core.PAUSE: "0"}
    os.environ |= {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    os.environ |= {chain_core.LOG: TRAINED, chain_core.FAULTS: str(folder / "plan.json")}
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CARFT_OPTUNA_STORAGE"):
        os.environ.pop(name, None)
    processes.load_all()
    published_table()
    from carft_sweep.sweeps.space import RANDOM_TRIALS

    chain_core.simulate_training()
    # A search of a few trials is to learn from them.
    RANDOM_TRIALS.update(tpe=2, gp=2, nsga2=3)
    # What a process has written survives its death in the system's memory: no need of fsync.
    os.fsync = lambda _: None  # type: ignore[assignment]
    _make_template(folder / "template")
    return data_of(folder)


def data_of(folder: Path) -> dict[str, Any]:
    """Write an image folder of two classes, which no run reads; return the sweep's `data`."""
    root = folder / "images"
    for split in ("train", "test", "shifts/dark"):
        for label, colour in {"red": (200, 60, 60), "blue": (60, 60, 200)}.items():
            place = root / split / label
            place.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (36, 36), (index, *colour[1:])).save(place / f"{index}.png")
    return {"family": "image_folder", "root": str(root), "val_fraction": 0.25}


def _make_template(home: Path) -> None:
    """Make a home with empty databases, whose tables take seconds to make."""

    def make() -> int:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        from carft_sweep.sweeps.home import Home
        from carft_sweep.sweeps.ledger.optuna_copy import open_storage

        Home(home).prepare()
        open_storage(Home(home))
        SqlAlchemyStore(f"sqlite:///{home / 'mlflow.db'}", str(home / "mlruns"))
        shutil.rmtree(home / "mlruns", ignore_errors=True)
        shutil.copy(home / "mlflow.db", home / "empty.db")
        return 0

    home.parent.mkdir(parents=True, exist_ok=True)
    pid = processes.fork(make, home.parent / "template.txt", {})
    if os.waitpid(pid, 0)[1]:
        raise SystemExit((home.parent / "template.txt").read_text())


def attempt(
    arguments: argparse.Namespace,
    folder: Path,
    address: str | None,
    data: Mapping[str, Any],
    number: int,
) -> tuple[str, Outcome]:
    """Carry out the history of a number; return the text to print and the outcome."""
    history = draw_history(arguments.seed, number, arguments.engine, data)
    place = folder / str(number)
    outcome = carry_out(history, arguments.seed, Scene(place, folder / "template", address))
    is_kept = arguments.only is not None or (arguments.keep and outcome.violations)
    if not is_kept:
        shutil.rmtree(place)
    lines = [history.describe()] if outcome.violations or arguments.only is not None else []
    for law, texts in outcome.violations.items():
        lines += [f"  BROKEN {law}: {text}" for text in texts[:3]]
    return "".join(f"{line}\n" for line in lines), outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the sums over all histories as text."""
    laws_broken = Counter(law for outcome in outcomes for law in outcome.violations)

    def total(counters: Iterator[Counter[str]]) -> str:
        counts = sum(counters, Counter[str]())
        return f"{counts.total()} ({', '.join(f'{k} {n}' for k, n in counts.most_common())})"

    rows = {
        "histories": len(outcomes),
        "with a law broken": sum(bool(outcome.violations) for outcome in outcomes),
        "executions": total(outcome.fates for outcome in outcomes),
        "changes": total(outcome.changes for outcome in outcomes),
        "damages": total(outcome.damages for outcome in outcomes),
        "trials": sum(outcome.trials for outcome in outcomes),
        "epochs": sum(outcome.epochs for outcome in outcomes),
        "seconds each": f"{sum(o.seconds for o in outcomes) / max(1, len(outcomes)):.1f}",
        "violations by law": dict(laws_broken) or "none",
    }
    return "\n".join(f"{name:>20}  {value}" for name, value in rows.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the histories and print; return 1 where a law is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number to begin with")
    parser.add_argument("--only", type=int, help="the one history to carry out; its home stays")
    parser.add_argument("--workers", type=int, default=1, help="histories at once")
    parser.add_argument("--keep", action="store_true", help="leave the homes of what failed")
    parser.add_argument("--folder", type=Path, help="work here")
    arguments = parser.parse_args(argv)
    if arguments.engine == "ray" and arguments.workers > 1:
        parser.error("--workers: histories on Ray share its nodes, and go one by one")
    memory = Path("/dev/shm")  # the database of each history is written to hundreds of times
    root = arguments.folder or Path(
        tempfile.mkdtemp(prefix="carft-histories-", dir=memory if memory.is_dir() else None)
    )
    data = prepare(root)
    numbers = range(arguments.first, arguments.first + arguments.count)
    if arguments.only is not None:
        numbers = range(arguments.only, arguments.only + 1)

    gc.collect()
    gc.freeze()  # else every fork copies what its collector looks at
    outcomes = []
    with ExitStack() as stack:
        address = None
        if arguments.engine == "ray":
            address = stack.enter_context(processes.ray_nodes(2))
        pool = stack.enter_context(get_context("fork").Pool(arguments.workers))
        carry = functools.partial(attempt, arguments, root, address, data)
        for text, outcome in pool.imap_unordered(carry, numbers):
            outcomes.append(outcome)
            sys.stdout.write(text)
            sys.stdout.flush()
    sys.stdout.write(f"{table(outcomes)}\n")
    if arguments.only is None and not arguments.keep:
        shutil.rmtree(root, ignore_errors=True)
    else:
        sys.stdout.write(f"It is all left in {root}\n")
    return int(any(outcome.violations for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
