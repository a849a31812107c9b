"""A home with thousands of finished trials, as a driver leaves it.

    python benchmarks/large_home.py FOLDER [--trials 10000]

The ledger, Optuna's study, and of each run what the core writes: 50 metrics, here for the
unmerged model and two merged ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweeps.home import Home
from sweeps.ledger.generations import Invocation
from sweeps.ledger.runs import NO_SEED
from sweeps.ledger.study import StudyProjection
from sweeps.ledger.summary import OUTCOME, write_summary
from sweeps.ledger.trials import Ledger
from sweeps.spec.spec import load_spec

NAME = "ten_thousand"
SWEEP: Mapping[str, Any] = {
    "name": NAME,
    "description": "A home as large as they come.",
    "method": "random",
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
MERGES = ("wise_ft@0.5", "wise_ft@0.75")
SPLITS = (
    *("id/val", "id/test", "ood/mean"),
    *("ood/outline", "ood/duotone", "ood/flat-emoji", "ood/3d-emoji", "ood/black-emoji"),
    "ood/pixel",
)
FAILED, PRUNED = 50, 20
"""Every so manieth trial failed or was pruned."""


def build(home: Home, trials: int) -> None:
    """A finished sweep of so many trials of one run each."""
    home.prepare()
    folder = home.sweep(NAME)
    file = folder / "sweep.yaml"
    folder.mkdir(parents=True)
    file.write_text(json.dumps({**SWEEP, "run_cap": trials}))
    spec = load_spec(file)
    plain = json.loads(json.dumps(spec.as_dict()))
    ledger = Ledger.create(folder, 1, plain, Invocation.of(spec).as_execution())
    zero_shot, fine_tune = _digest("zero_shot"), _digest("fine_tune")
    ledger.remember(
        "baselines",
        [
            _baseline("zero_shot", {NO_SEED: zero_shot}, ()),
            _baseline("fine_tune", {"0": fine_tune}, MERGES),
        ],
    )
    ledger.remember("trial_count", trials)
    ledger.remember("merges", list(MERGES))
    write_run(home, zero_shot, "zero_shot", random.Random("zero_shot"), merges=())
    write_run(home, fine_tune, "fine_tune", random.Random("fine_tune"))
    for number in range(trials):
        _trial(home, ledger, number)
    ledger.remember(OUTCOME, {"state": "done", "broken": None})
    write_summary(ledger)
    StudyProjection(home, ledger).update()


def _trial(home: Home, ledger: Ledger, number: int) -> None:
    draw = random.Random(number)
    params = {
        "algorithm.kl_weight": math.exp(draw.uniform(math.log(0.01), math.log(10))),
        "optim.lr": math.exp(draw.uniform(math.log(1e-6), math.log(1e-3))),
    }
    digest = _digest(str(number))
    setting = {"params": params, "algorithm": "car_ft", "runs": {"0": digest}}
    ledger.propose(number, {**setting, "merges": list(MERGES)})
    for epoch in range(1, 4):
        ledger.report(number, epoch, draw.random())
    finished = number % FAILED != 1 and number % PRUNED != 1
    metrics = write_run(home, digest, f"car_ft {number}", draw, state="done" if finished else "")
    if finished:
        ledger.complete(number, [metrics["id/val/top1"]])
    elif number % FAILED == 1:
        ledger.fail(number, "nan", "train/loss is nan in epoch 1")
    else:
        ledger.prune(number, "asha", "not in the best quarter at epoch 1")


def write_run(
    home: Home,
    digest: str,
    label: str,
    draw: random.Random,
    *,
    state: str = "done",
    merges: Sequence[str] = MERGES,
) -> Mapping[str, float]:
    """The files of a run; the metrics of its unmerged model."""
    folder = home.runs / digest
    now = datetime.now(UTC).timestamp()
    run = {
        **{"digest": digest, "state": state or "stopped", "label": label, "sweep": NAME},
        **{"attempts": 1, "created": now, "ended": now, "lease": None, "failure": None},
    }
    _write(folder / "run.json", run)
    reports = [
        {
            **{"epoch": epoch, "epochs": 3, "step": epoch, "timestamp": round(1000 * now) + epoch},
            "metrics": {"id/val/top1": draw.random()},
        }
        for epoch in range(4)
    ]
    _write(folder / "history.json", reports)
    labels = ("unmerged", *merges) if state else ()
    found = {label: _metrics(draw) for label in labels}
    for step, (label, metrics) in enumerate(found.items()):
        _write(
            folder / "evaluations" / label / "metrics.json",
            {
                **{"digest": digest, "label": label, "step": step, "values": {}},
                **{"metrics": metrics, "facts": _FACTS},
            },
        )
    if state:
        _write(folder / "trained.json", {"seconds": 1.0, "ended": now})
    return found.get("unmerged", {})


def _baseline(algorithm: str, runs: Mapping[str, str], merges: Sequence[str]) -> dict[str, Any]:
    return {"algorithm": algorithm, "params": {}, "runs": dict(runs), "merges": list(merges)}


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, data: object) -> None:
    """As the core writes, without waiting for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=10_000)
    chosen = parser.parse_args()
    build(Home(chosen.folder), chosen.trials)
