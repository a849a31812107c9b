"""A core that trains nothing: known values, written as the real one writes them.

What it does beyond that stands in the file that TOY_PLAN names, as JSON: a label of the form
`kl_weight/seed` to a list of acts, one for each attempt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.files import digest_of, read_json, write_json
from carft_sweep.carft_core.runs.identity import Identity, evaluation_digest
from carft_sweep.carft_core.runs.models import models_of
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.entry import Report
from tests.sweeps.toy_runs import act, epoch_report

ENTRY = "tests.sweeps.toy_core:train_run"
EPOCHS = 4
IMAGES = {"id/val": 100, "id/test": 100, "ood/dark": 100}
"""By split how many were measured, whatever the config says."""


def toy_identity(config: TrialConfig, seed: int) -> Identity:
    """In the place of `identify`: opens nothing."""
    parts: dict[str, Any] = {
        "algorithm": config.as_dict()["algorithm"],
        "data": {"digest": "d" * 64, **domains_of(config)},
        **{"model": "m" * 64, "device": config.device, "precision": config.precision},
    }
    if config.algorithm.trains:
        parts |= {"seed": seed, "optim": config.optim.model_dump()}
    return Identity(digest_of(parts), parts)


def domains_of(config: TrialConfig) -> dict[str, Any]:
    """What a run on domains depends on besides; of other data nothing."""
    data = config.data.model_dump()
    names = ("test_domain", "split_seed") if config.data.test_domain else ()
    return {name: data[name] for name in names if name in data}


def accuracies(config: TrialConfig, top1: float) -> dict[str, float]:
    """What a run measures: on domains no ID test, and the one that is held out in two parts."""
    domain = config.data.test_domain
    if domain is None:
        return {"id/val/top1": top1, "id/test/top1": top1, "ood/mean/top1": top1 / 2}
    held_out = {f"ood/{domain}/top1": top1 / 2, f"ood/{domain}_out/top1": 1 - top1}
    return {"id/val/top1": top1, **held_out, "ood/mean/top1": top1 / 2}


def name_of(config: TrialConfig, seed: int) -> str:
    """`0.3/1`, or the algorithm where it has no KL weight."""
    weight = getattr(config.algorithm, "kl_weight", None)
    return f"{config.algorithm.name if weight is None else f'{weight:g}'}/{seed}"


def value(config: TrialConfig, seed: int) -> float:
    """The validation accuracy that this run comes to: best at 0.3, a little more by seed."""
    weight = getattr(config.algorithm, "kl_weight", 0.0)
    return 0.8 - abs(weight - 0.3) / 10 + seed / 100


def train_run(
    config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
) -> Mapping[str, Any] | None:
    """An entry: resumes behind the last reported epoch, as the core does."""
    known = trial_config(config)
    history = _train(known, seed, report, workdir)
    if history is None:
        return None
    _misbehave(known, seed, workdir)
    top1 = value(known, seed)
    for step, (label, model) in enumerate(models_of(known).items()):
        file = workdir / "evaluations" / label / "metrics.json"
        digest = evaluation_digest(workdir.name, model, known)
        if (read_json(file) or {}).get("digest") == digest:
            continue
        evaluation = {"digest": digest, "label": label, "step": step, "values": {}}
        facts = {"data": "d" * 64, "images": IMAGES}
        write_json(file, {**evaluation, "metrics": accuracies(known, top1), "facts": facts})
        _note(workdir, f"evaluated {label}")
    return {"digest": workdir.name, "seed": seed, "warnings": []}


def _train(
    config: TrialConfig, seed: int, report: Report, workdir: Path
) -> list[dict[str, Any]] | None:
    claimed = {"digest": workdir.name, "identity": dict(toy_identity(config, seed).parts)}
    write_json(workdir / "config.json", {**claimed, "seed": seed, "config": config.as_dict()})
    if read_json(workdir / "trained.json"):
        return []
    reported: list[dict[str, Any]] = read_json(workdir / "history.json") or []
    # As after a kill, so many epochs behind the last checkpoint; they keep their first report.
    trained = len(reported) - (read_json(workdir / "forgotten.json") or 0)
    (workdir / "forgotten.json").unlink(missing_ok=True)
    history = reported[:trained]
    if config.algorithm.trains:
        for epoch in range(trained, EPOCHS + 1):
            is_known = epoch < len(reported)
            history.append(reported[epoch] if is_known else _report(config, seed, epoch))
            write_json(workdir / "history.json", [*history, *reported[epoch + 1 :]])
            _note(workdir, f"epoch {epoch}")
            if report(history[-1]) is Decision.STOP and epoch < EPOCHS:
                return None
    write_json(workdir / "trained.json", {"seconds": 0.1})
    return history


def _report(config: TrialConfig, seed: int, epoch: int) -> dict[str, Any]:
    """The accuracy rises evenly to what the run comes to."""
    report = epoch_report(epoch, EPOCHS)
    report["metrics"]["id/val/top1"] = value(config, seed) * epoch / EPOCHS
    return report


def _misbehave(config: TrialConfig, seed: int, workdir: Path) -> None:
    if "TOY_PLAN" not in os.environ:
        return
    file = Path(os.environ["TOY_PLAN"])
    plan: dict[str, list[dict[str, Any]]] = json.loads(file.read_text())
    acts = plan.get(name_of(config, seed))
    if not acts:
        return
    todo = acts.pop(0)
    file.write_text(json.dumps(plan))
    if "forget" in todo:
        (workdir / "trained.json").unlink()
        write_json(workdir / "forgotten.json", todo.pop("forget"))
    act({"epochs": 0, **todo}, seed, report=_nobody, workdir=workdir)


def _nobody(report: Mapping[str, Any]) -> Decision:
    del report
    return Decision.CONTINUE


def _note(workdir: Path, text: str) -> None:
    with (workdir.parent / "toy.log").open("a") as log:
        log.write(f"{workdir.name} {text}\n")
