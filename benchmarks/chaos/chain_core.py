"""A stand-in for the training core: a chain of numbers, each computed from the one before.

Files are written as `carft_core` writes them, with a checkpoint every other epoch, so that an epoch
that was lost, repeated from a wrong state, or computed for another run changes every value behind
it. Nothing of this module loads torch: a worker is there within a tenth of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.files import read_json, write_json, write_text
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.entry import Report

ENTRY = "benchmarks.chaos.chain_core:train_run"
PAUSE = "CHAIN_PAUSE"
"""The variable for the seconds that an epoch, and an evaluation, takes."""
LOG = "CHAIN_LOG"
"""The variable for the name of a file in the home that lists what really happens to runs, an event
a line: `DIGEST begins`, `DIGEST epoch 3`, `DIGEST stops`, `DIGEST trained`."""
FAULTS = "CHAIN_FAULTS"
"""The variable for a JSON file: for each fault the share of runs whose first attempt has it."""
FAULTY_EPOCH = 3
UNMERGED = "unmerged"
ZERO_SHOT = 0.25
"""The number in place of the zero-shot model's weights."""
_CHECKPOINT_EVERY = 2


def train_run(
    config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
) -> Mapping[str, Any] | None:
    """Train and evaluate one run, as an engine's entry does; return None if it was stopped."""
    members = config["algorithm"].get("members")
    trains = config["algorithm"]["name"] != "zero_shot" and members is None
    if not (workdir / "config.json").exists():
        claimed = {"digest": workdir.name, "identity": {}, "seed": seed, "config": dict(config)}
        write_json(workdir / "config.json", claimed)
    if not (workdir / "trained.json").exists():
        _note(workdir, "begins")
        if trains and not _train(config, seed, report, workdir):
            _note(workdir, "stops")
            return None
        write_json(workdir / "trained.json", {"seconds": 0.1, "ended": time.time()})
        _note(workdir, "trained")
        (workdir / "checkpoint.pt").unlink(missing_ok=True)
        sys.stderr.write("trained to the end\n")
    if members is not None:
        weight = sum(_weight(workdir.parent / name) for name in members) / len(members)
    else:
        weight = _weight(workdir) if trains else ZERO_SHOT
    for label in labels_of(config) if trains or members else [UNMERGED]:
        file = workdir / "evaluations" / label / "metrics.json"
        digest = evaluation_digest(workdir.name, label)
        if (read_json(file) or {}).get("digest") == digest:
            continue
        time.sleep(_pause())
        metrics = _measured(merged_weight(weight, label))
        facts = {"data": "d", "images": {}}
        step = round(1000 * float(label.partition("@")[2] or 0))
        measured = {"label": label, "step": step, "values": {}, "metrics": metrics}
        write_json(file, {"digest": digest, **measured, "facts": facts})
    return {"digest": workdir.name, "seed": seed, "warnings": []}


def merged_weight(weight: float, label: str) -> float:
    """Return the number in place of a model's weights; of a merge, interpolated by its alpha."""
    alpha = float(label.partition("@")[2] or 1.0)
    return alpha * weight + (1 - alpha) * ZERO_SHOT


def final_weight(config: Mapping[str, Any], seed: int) -> float:
    """Compute the last number of an undisturbed run."""
    weight = _first(config, seed)
    for epoch in range(1, int(config["optim"]["epochs"]) + 1):
        weight = _next(weight, float(config["algorithm"].get("kl_weight", 0.0)), epoch)
    return weight


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """List the models that are measured of a run, as `runs.models.models_of` names them."""
    alphas = [alpha for merge in config["merges"] for alpha in merge["alphas"]]
    return [UNMERGED, *(f"wise_ft@{alpha:g}" for alpha in alphas)]


def evaluation_digest(digest: str, label: str) -> str:
    """Return the digest of an evaluation, without opening data."""
    return hashlib.sha256(f"{digest} {label}".encode()).hexdigest()


def _train(config: Mapping[str, Any], seed: int, report: Report, workdir: Path) -> bool:
    """Train on from the checkpoint, if there is one; return False when the run was stopped."""
    epochs = int(config["optim"]["epochs"])
    kl_weight = float(config["algorithm"].get("kl_weight", 0.0))
    checkpoint = workdir / "checkpoint.pt"
    progress = read_json(checkpoint) or {"weight": _first(config, seed), "history": []}
    weight, history = progress["weight"], progress["history"]
    reported = {item["epoch"]: item for item in read_json(workdir / "history.json") or []}
    for epoch in range(len(history), epochs + 1):
        _note(workdir, f"epoch {epoch}")
        if epoch:
            time.sleep(_pause())
            weight = _next(weight, kl_weight, epoch)
        metrics = {"train/loss": 1 - weight, "id/val/top1": weight}
        earlier = reported.get(epoch)
        repeated = earlier is not None and earlier["metrics"] == metrics
        history.append(earlier if repeated else _report(epoch, epochs, metrics))
        if epoch == epochs:
            write_text(workdir / "weights" / "last.txt", repr(weight))
        ahead = [item for number, item in reported.items() if number > epoch]
        write_json(workdir / "history.json", [*history, *ahead])
        if epoch % _CHECKPOINT_EVERY == 1 and epoch < epochs:
            write_json(checkpoint, {"weight": weight, "history": history})
        if epoch == FAULTY_EPOCH:
            _go_wrong(workdir)
        if report(history[-1]) is Decision.STOP and epoch < epochs:
            write_json(checkpoint, {"weight": weight, "history": history})
            return False
    return True


def _first(config: Mapping[str, Any], seed: int) -> float:
    """Return the first number of a chain; with another seed another setting is best."""
    return 0.1 + 0.8 * (seed * 0.618 % 1.0) + float(config["optim"]["lr"])


def _next(weight: float, kl_weight: float, epoch: int) -> float:
    """Return the next number (logistic map): a difference in the last bit soon is in the first."""
    rate = 3.6 + 0.3 * min(kl_weight, 1.0)
    return rate * weight * (1 - weight) * (1 - epoch * 1e-6)


def _report(epoch: int, epochs: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return a report of an epoch in the form of `EpochReport.as_dict`."""
    counts = {"epoch": epoch, "epochs": epochs, "step": epoch, "steps": epochs}
    now = time.time_ns() // 1_000_000
    return {**counts, "metrics": dict(metrics), "seconds": 0.01, "timestamp": now}


def _weight(workdir: Path) -> float:
    return float((workdir / "weights" / "last.txt").read_text())


def _note(workdir: Path, text: str) -> None:
    if LOG in os.environ:
        with (workdir.parents[1] / os.environ[LOG]).open("a", encoding="utf-8") as log:
            log.write(f"{workdir.name} {text}\n")


def _measured(weight: float) -> dict[str, float]:
    ood = {"ood/dark/top1": weight / 2, "ood/mean/top1": weight / 2}
    return {"id/val/top1": weight, "id/test/top1": weight, **ood}


def _pause() -> float:
    return float(os.environ.get(PAUSE, "0.03"))


def simulate_training() -> None:
    """Make the commands of this process and of its forks train with this core, on every engine.

    The planner, the ledger, the worker processes and the projections are the real ones.
    """
    import carft_sweep.carft_core.runs.evaluations
    import carft_sweep.sweeps.engines.factory
    import carft_sweep.sweeps.engines.ray_tune

    def digest_of(digest: str, model: Any, config: object) -> str:
        del config
        return evaluation_digest(digest, UNMERGED if model is None else model[1].label)

    carft_sweep.carft_core.runs.evaluations.evaluation_digest = digest_of  # type: ignore[assignment, attr-defined]
    engines, ray_engines = carft_sweep.sweeps.engines.factory, carft_sweep.sweeps.engines.ray_tune
    for module, name in (
        (engines, "LocalEngine"),
        (engines, "InProcessEngine"),
        (ray_engines, "RayEngine"),
    ):
        made = getattr(module, name)
        setattr(module, name, partial(getattr(made, "func", made), entry=ENTRY))


def _go_wrong(workdir: Path) -> None:
    """Cause the fault that the file of FAULTS plans for the first attempt at a run."""
    file = os.environ.get(FAULTS)
    attempts = (read_json(workdir / "run.json") or {"attempts": 1})["attempts"]
    if not file or attempts > 1:
        return
    match drawn_fault(json.loads(Path(file).read_text()), workdir.name):
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "cuda-memory":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        case "crash":
            raise RuntimeError("the library of the GPU has failed")


def drawn_fault(rates: Mapping[str, float], digest: str) -> str | None:
    """Draw a fault by a run's digest, with the probabilities `rates`: the same at each call."""
    chance = int(hashlib.sha256(digest.encode()).hexdigest()[:8], 16) / 16**8
    for fault, rate in rates.items():
        chance -= rate
        if chance < 0:
            return fault
    return None
