"""`carft-sweep check FILE`: validate a sweep file and say what would run."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from carft_core.data.splits import prepare
from carft_core.files import read_json
from carft_core.result import is_complete
from sweeps.home import Home, find_home
from sweeps.plan import Planner, Task
from sweeps.progress import duration
from sweeps.runs import Runs
from sweeps.spec import SweepSpec, load_spec

Say = Callable[[str], None]


@dataclass
class Plan:
    """What a sweep would do now."""

    sweep: str
    method: str
    trials: int
    runs: int
    done: int = 0
    to_evaluate: int = 0
    to_train: int = 0
    unknown: int = 0
    """Runs whose point a sampler has yet to choose."""
    epochs: int = 0
    """To be trained, of the runs that are known."""
    seconds: float | None = None
    disk_mb: float | None = None
    warnings: tuple[str, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    spec = load_spec(arguments.file, arguments.overrides)
    plan = make_plan(spec, find_home(arguments.home))
    if arguments.json:
        say(json.dumps(vars(plan), indent=1))
    else:
        for line in _lines(plan, spec):
            say(line)
    return 0


def make_plan(spec: SweepSpec, home: Home) -> Plan:
    """Look at every run that is known before the sweep runs, and at what the home has of it."""
    # A look at what would be creates no home.
    planner = Planner(spec, home.cache if home.path.exists() else None)
    runs = Runs(home.runs)
    settings = planner.baselines()
    if spec.method == "grid":
        settings += [planner.trial(params) for params in spec.points()]
    unknown = 0 if spec.method == "grid" else spec.trial_count * len(spec.seeds)
    plan = Plan(
        spec.name,
        spec.method,
        spec.trial_count,
        sum(map(len, settings)) + unknown,
        unknown=unknown,
        warnings=spec.warnings,
    )
    for tasks in settings:
        plan.rows.append(_row(plan, tasks, runs))
    _estimate(plan, runs)
    return plan


def _row(plan: Plan, tasks: Sequence[Task], runs: Runs) -> dict[str, Any]:
    states = {"done": 0, "evaluate": 0, "train": 0}
    for task in tasks:
        folder = runs.folder(task.digest)
        if is_complete(folder, task.config):
            states["done"] += 1
            plan.done += 1
        elif (folder / "trained.json").exists() or not task.config.algorithm.trains:
            states["evaluate"] += 1
            plan.to_evaluate += 1
        else:
            states["train"] += 1
            plan.to_train += 1
            plan.epochs += max(0, _epochs(task) - _trained(runs, task))
    name = tasks[0].label if tasks[0].seed is None else tasks[0].label.rsplit(" seed ", 1)[0]
    seeds = [task.seed for task in tasks if task.seed is not None]
    return {"label": name, "role": tasks[0].role, "seeds": seeds, **states}


def _epochs(task: Task) -> int:
    optim = task.config.optim
    if optim.epochs is not None:
        return optim.epochs
    images = len(prepare(task.config.data).train)
    return math.ceil((optim.steps or 0) / math.ceil(images / optim.batch_size))


def _trained(runs: Runs, task: Task) -> int:
    """The epochs that an unfinished run has behind it."""
    if not (runs.folder(task.digest) / "checkpoint.pt").exists():
        return 0
    history = read_json(runs.folder(task.digest) / "history.json") or []
    return int(history[-1]["epoch"]) if history else 0


def _estimate(plan: Plan, runs: Runs) -> None:
    """Time and disk from what earlier runs of this home took."""
    seconds: list[float] = []
    sizes: list[int] = []
    for digest in runs.digests():
        folder = runs.folder(digest)
        trained = read_json(folder / "trained.json")
        history = read_json(folder / "history.json") or []
        if trained is None or len(history) < 2:
            continue
        # With the evaluation of each epoch: from the first report to the last.
        span = (history[-1]["timestamp"] - history[0]["timestamp"]) / 1000
        seconds.append(span / (len(history) - 1))
        sizes.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
    if not seconds:
        return
    per_run = sum(sizes) / len(sizes) / 2**20
    plan.disk_mb = round(per_run * (plan.to_train + plan.unknown), 1)
    share = 1 + plan.unknown / plan.to_train if plan.to_train else 1.0
    plan.seconds = round(sum(seconds) / len(seconds) * plan.epochs * share, 1)


def _lines(plan: Plan, spec: SweepSpec) -> Iterator[str]:
    for warning in plan.warnings:
        yield f"! {warning}"
    seeds = "1 seed" if len(spec.seeds) == 1 else f"{len(spec.seeds)} seeds"
    yield f"{plan.sweep}: {plan.method}, {plan.trials} trials, {seeds}, {plan.runs} runs"
    width = max((len(row["label"]) for row in plan.rows), default=0)
    for row in plan.rows:
        states = [f"{row[name]} {word}" for name, word in _WORDS.items() if row[name]]
        yield f"  {row['label']:<{width}}  {', '.join(states)}"
    if plan.unknown:
        yield f"  and {plan.unknown} runs at points that {plan.method} has yet to choose"
    yield (
        f"{plan.done} done already, {plan.to_evaluate} to evaluate only, "
        f"{plan.to_train + plan.unknown} to train ({plan.epochs} epochs"
        + (" of the known ones)" if plan.unknown else ")")
    )
    if plan.to_train + plan.unknown == 0:
        return
    if plan.seconds is None:
        yield "No run of this home tells how long an epoch takes."
    else:
        yield (
            f"About {duration(plan.seconds)} of training and {plan.disk_mb:g} MB of disk, "
            "by earlier runs of this home."
        )


_WORDS = {"done": "done", "evaluate": "to evaluate", "train": "to train"}
