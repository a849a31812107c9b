"""A home with thousands of finished trials, as a driver leaves it.

    python benchmarks/large_home.py FOLDER [--trials 10000]

The ledger, Optuna's study, and of each run what the core writes: 50 metrics, here for the
unmerged model and two merged ones. Digests are those that a driver plans, so that `run` and
`resume` find every run there. MLflow has none of it yet: `carft-sweep sync` sends it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.identity import evaluation_digest
from carft_sweep.carft_core.run import models_of
from carft_sweep.sweeps.engines.factory import make_engine
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.generations import COPY, Invocation
from carft_sweep.sweeps.ledger.status import OUTCOME
from carft_sweep.sweeps.ledger.study import StudyProjection
from carft_sweep.sweeps.ledger.trials import Ledger
from carft_sweep.sweeps.plan.tasks import Planner, RunTask, merge_labels, setting_record
from carft_sweep.sweeps.spec.spec import load_spec

NAME = "ten_thousand"
SWEEP: Mapping[str, Any] = {
    "name": NAME,
    "description": "A home as large as they come.",
    "parameters": {
        "algorithm.kl_weight": {"distribution": "log_uniform_values", "min": 0.01, "max": 10},
        "optim.lr": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-3},
    },
    "seeds": [0],
    "baselines": ["zero_shot", "fine_tune"],
    "trial": {
        "algorithm": {"name": "car_ft"},
        "merges": [{"name": "wise_ft", "alphas": [0.5, 0.75]}],
        "device": "cpu",
    },
}
SPLITS = (
    *("id/val", "id/test", "ood/mean"),
    *("ood/outline", "ood/duotone", "ood/flat-emoji", "ood/3d-emoji", "ood/black-emoji"),
    "ood/pixel",
)
FAILED, PRUNED = 50, 20
"""Every so manieth trial failed or was pruned."""


def build(home: Home, trials: int, method: str = "tpe") -> None:
    """A finished sweep of so many trials of one run each; with `random` of as many baselines."""
    home.prepare()
    folder = home.sweep(NAME)
    file = folder / COPY
    folder.mkdir(parents=True)
    file.write_text(json.dumps({**SWEEP, "method": method, "run_cap": trials}))
    spec = load_spec(file)
    plain = json.loads(json.dumps(spec.as_dict()))
    ledger = Ledger.create(folder, 1, plain, Invocation.of(spec).as_execution())
    with closing(make_engine(spec, home=home.path)) as engine:
        planner = Planner(spec, engine.hardware)
    baselines = planner.baselines()
    ledger.remember("baselines", [setting_record(tasks) for tasks in baselines])
    ledger.remember("trial_count", trials)
    for tasks in baselines:
        write_run(home, tasks[0], random.Random(tasks[0].label))
    for number in range(trials):
        _trial(home, ledger, planner, number)
    ledger.remember(OUTCOME, {"state": "done", "at": time.time(), "broken": None})
    StudyProjection(home, ledger).update()


def _trial(home: Home, ledger: Ledger, planner: Planner, number: int) -> None:
    draw = random.Random(number)
    params = {
        "algorithm.kl_weight": math.exp(draw.uniform(math.log(0.01), math.log(10))),
        "optim.lr": math.exp(draw.uniform(math.log(1e-6), math.log(1e-3))),
    }
    tasks = planner.trial(params, number)
    ledger.propose(number, setting_record(tasks))
    ledger.remember("merges", merge_labels(tasks[0].config))
    for epoch in range(1, 4):
        ledger.report(number, epoch, draw.random())
    finished = number % FAILED != 1 and number % PRUNED != 1
    if finished:
        metrics = write_run(home, tasks[0], draw)
        ledger.complete(number, [metrics["id/val/top1"]])
    elif number % FAILED == 1:
        reason = {"kind": "nan", "message": "train/loss is nan in epoch 1"}
        write_run(home, tasks[0], draw, state="failed", failure=reason)
        ledger.fail(number, **reason)
    else:
        write_run(home, tasks[0], draw, state="stopped")
        ledger.prune(number, "asha", "not in the best quarter at epoch 1")


def write_run(
    home: Home,
    task: RunTask,
    draw: random.Random,
    *,
    state: str = "done",
    failure: Mapping[str, str] | None = None,
) -> Mapping[str, float]:
    """The files of a run; the metrics of its unmerged model."""
    folder, digest = home.runs / task.digest, task.digest
    now = datetime.now(UTC).timestamp()
    run = {
        **{"digest": digest, "state": state, "label": task.label, "sweep": NAME},
        **{"attempts": 1, "created": now, "ended": now, "lease": None, "failure": failure},
    }
    _write(folder / "run.json", run)
    claim: dict[str, Any] = {"digest": digest, "identity": dict(task.identity.parts)}
    _write(
        folder / "config.json", {**claim, "seed": task.seed or 0, "config": task.config.as_dict()}
    )
    reports = [
        {
            **{"epoch": epoch, "epochs": 3, "step": epoch, "steps": 3, "seconds": 0.5 * epoch},
            "timestamp": round(1000 * now) + 1000 * epoch,
            "metrics": {"id/val/top1": draw.random()},
        }
        for epoch in range(4)
    ]
    _write(folder / "history.json", reports)
    if state != "done":
        return {}
    metrics = {label: _metrics(draw) for label in models_of(task.config)}
    for label, model in models_of(task.config).items():
        point = None if model is None else model[1]
        _write(
            folder / "evaluations" / label / "metrics.json",
            {
                "digest": evaluation_digest(digest, model, task.config),
                "label": label,
                "step": 0 if point is None else point.step,
                "values": {} if point is None else dict(point.values),
                **{"metrics": metrics[label], "facts": _FACTS},
            },
        )
    _write(folder / "trained.json", {"seconds": 1.0, "ended": now})
    return metrics["unmerged"]


def _metrics(draw: random.Random) -> dict[str, float]:
    kinds = ("top1", "nll", "ece", "brier")
    found = {f"{split}/{kind}": draw.random() for split in SPLITS for kind in kinds}
    found |= {name: draw.random() for name in ("gap/top1", "hmean/top1", "gain/ood/top1")}
    probes = (
        (split, kind) for split in SPLITS if split != "ood/mean" for kind in ("kl", "entropy")
    )
    return found | {f"context/{split}/{kind}": draw.random() for split, kind in probes}


_FACTS = {
    "model": "b" * 64,
    "data": "4" * 64,
    "transform": "Transform(size=32, interpolation='bicubic', resize_mode='shortest')",
    "budget": "3 epochs",
    "precision": "fp32",
    "device": "cpu",
    "contexts": "icon_shift",
    "contexts_name": ["3D emoji", "black emoji", "duotone", "flat emoji", "outline", "pixel"],
    "images": {split: 200 for split in SPLITS if split != "ood/mean"},
}


def _write(path: Path, data: object) -> None:
    """As the core writes, without waiting for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--method", default="tpe", help="tpe, random or another of a sweep file")
    chosen = parser.parse_args()
    build(Home(chosen.folder), chosen.trials, chosen.method)
