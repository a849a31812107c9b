"""A home with a finished sweep to show: made-up models, but of real images, in the core's files.

    python -m tests.sweeps.shown_home FOLDER

Nothing is trained. What a run says of an image is drawn from its label, its seed and the image's
name, such that fine-tuning gains in distribution and loses on the shifts, and CAR-FT loses less.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import FamilyData, Split, open_data
from carft_sweep.carft_core.evaluation.measure import split_metrics
from carft_sweep.carft_core.evaluation.measure import summary as flat
from carft_sweep.carft_core.evaluation.predictions import Predictions
from carft_sweep.sweeps.engines.resources import Hardware
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.generations import Invocation
from carft_sweep.sweeps.ledger.ledger import Ledger
from carft_sweep.sweeps.ledger.optuna_copy import StudySync
from carft_sweep.sweeps.ledger.status import OUTCOME
from carft_sweep.sweeps.plan.planner import PlannedRun, Planner, merge_labels, setting_record
from carft_sweep.sweeps.spec.spec import load_spec
from tests.carft_core.random_predictions import write_predictions

NAME = "shown"
SWEEP: Mapping[str, Any] = {
    "name": NAME,
    "description": "How strongly should the context be held, at which learning rate?",
    "method": "grid",
    "parameters": {
        "algorithm.kl_weight": {"values": [0.1, 0.3, 1.0, 3.0, 10.0]},
        "optim.lr": {"values": [0.0001, 0.0003]},
    },
    "seeds": [0, 1, 2],
    "baselines": ["zero_shot", "fine_tune"],
    "trial": {
        "data": {"family": "icon_shift_dev"},
        "algorithm": {"name": "car_ft"},
        "optim": {"epochs": 3},
        "merges": [{"name": "wise_ft", "alphas": [0.5]}],
        "device": "cpu",
    },
}
BEGAN = 1_795_600_000.0
"""When the first run began, in seconds since the Unix epoch."""
ANSWERS = {"zero_shot": (0.5, 0.5), "fine_tune": (1.6, 0.2), "car_ft": (1.5, 0.4)}
"""How far an algorithm raises the right class, in distribution and on the shifts."""


def make(home: Home) -> None:
    """Write the sweep and its runs as a driver and the core leave them."""
    home.prepare()
    folder = home.sweep(NAME)
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(json.dumps(SWEEP, indent=1))
    spec = load_spec(folder / "sweep.yaml")
    plain = json.loads(json.dumps(spec.as_dict()))
    ledger = Ledger.create(folder, 1, plain, Invocation.of(spec).as_execution())
    planner = Planner(spec, Hardware(1))
    baselines = planner.baselines()
    ledger.remember("baselines", [setting_record(tasks) for tasks in baselines])
    ledger.remember("trial_count", spec.trial_count)
    ledger.remember("merges", merge_labels(spec.config_for({})))
    for tasks in baselines:
        _write(home, tasks)
    for number, params in enumerate(spec.points()):
        tasks = planner.trial(params, number)
        trial = ledger.add_trial(number, setting_record(tasks))
        ledger.complete(trial.number, [_write(home, tasks)])
    ledger.remember(OUTCOME, {"state": "done", "at": BEGAN + 60, "broken": None})
    StudySync(home, ledger).update()


def _write(home: Home, tasks: Sequence[PlannedRun]) -> float:
    """The files of a setting's runs; their mean validation accuracy."""
    values = [_run(home, task) for task in tasks]
    return sum(values) / len(values)


def _run(home: Home, task: PlannedRun) -> float:
    folder, config = home.runs / task.digest, task.config
    data = open_data(config.data)
    parts = {"digest": task.digest, "identity": dict(task.identity.parts)}
    _json(folder / "config.json", {**parts, "seed": task.seed or 0, "config": config.as_dict()})
    ended = BEGAN + 60
    run = {"digest": task.digest, "state": "done", "label": task.label, "sweep": NAME}
    times = {"attempts": 1, "created": BEGAN, "ended": ended, "lease": None, "failure": None}
    _json(folder / "run.json", {**run, **times})
    _json(folder / "trained.json", {"seconds": 48.0, "ended": ended})
    own = 0.0
    for step, label in enumerate(["unmerged", *merge_labels(config)]):
        metrics = _evaluate(folder / "evaluations" / label, task, data, merged=step > 0)
        facts = _facts(config, data)
        measured = {"digest": label, "label": label, "step": 1000 * step, "values": {}}
        evaluation = {**measured, "metrics": metrics, "facts": facts}
        _json(folder / "evaluations" / label / "metrics.json", evaluation)
        own = metrics["id/val/top1"] if label == "unmerged" else own
    if task.seed is not None:
        _json(folder / "history.json", [_report(epoch, own) for epoch in range(4)])
    return own


def _report(epoch: int, value: float) -> dict[str, Any]:
    metrics = {"id/val/top1": value * (0.7 + 0.1 * epoch)}
    if epoch:
        metrics |= {"train/loss": 2.0 / (1 + epoch), "system/images_per_s": 300.0 + epoch}
    times = {"seconds": 16.0 * bool(epoch), "timestamp": round(1000 * (BEGAN + 16 * epoch))}
    steps = {"epoch": epoch, "epochs": 3, "step": 20 * epoch, "steps": 60}
    return {**steps, **times, "metrics": metrics}


def _evaluate(
    folder: Path, task: PlannedRun, data: FamilyData, *, merged: bool
) -> dict[str, float]:
    splits = {"id/val": data.val, "id/test": data.test}
    splits |= {f"ood/{name}": split for name, split in data.shifts.items()}
    predicted = [_predict(name, split, task, merged) for name, split in splits.items() if split]
    write_predictions(folder / "predictions.parquet", predicted, "never", data.class_names)
    metrics = flat({item.split: split_metrics(item) for item in predicted})
    held = float(task.params.get("algorithm.kl_weight", 0.0))
    for place, item in enumerate(predicted):
        moved = 0.0 if task.seed is None else 0.1 / (0.2 + held)
        metrics[f"context/{item.split}/kl"] = moved * (1 + 0.1 * place)
        metrics[f"context/{item.split}/entropy"] = 1.5 + 0.1 * place
    return metrics


def _predict(name: str, split: Split, task: PlannedRun, merged: bool) -> Predictions:
    """Noise of the images' own, some of the run's, and a lift of the right class."""
    classes = int(split.labels.max()) + 1
    images = torch.Generator().manual_seed(sum(name.encode()))
    run = torch.Generator().manual_seed(1000 * (task.trial or 0) + (task.seed or 0) + 17)
    logits = 1.5 * torch.randn(len(split), classes, generator=images)
    trained = task.seed is not None
    logits += (0.4 * trained) * torch.randn(len(split), classes, generator=run)
    place = 0 if name.startswith("id/") else 1
    lift, start = ANSWERS[task.algorithm][place], ANSWERS["zero_shot"][place]
    lift = (lift + start) / 2 + 0.2 if merged else lift
    lift -= 0.2 * abs(float(task.params.get("optim.lr", 0.0003)) - 0.0003) / 0.0007 * trained
    logits[torch.arange(len(split)), split.labels] += 3 + lift
    return Predictions(
        split=name,
        ids=split.ids,
        units=split.units,
        labels=split.labels,
        logits=logits,
        features=torch.zeros(len(split), 0),
    )


def _facts(config: TrialConfig, data: FamilyData) -> dict[str, Any]:
    budget = "3 epochs" if config.algorithm.trains else None
    inputs = {"model": "m" * 64, "data": data.digest, "transform": "Transform(size=32)"}
    contexts = {"contexts": "icon_shift", "contexts_name": [], "images": {}}
    return {**inputs, **contexts, "budget": budget, "precision": "fp32", "device": "cpu"}


def _json(path: Path, data: object) -> None:
    """As the core writes, without waiting for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


if __name__ == "__main__":
    make(Home(Path(sys.argv[1]).absolute()))
