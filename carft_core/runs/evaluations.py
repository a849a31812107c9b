"""The evaluations of a run's models: measured, written, and read back as its result."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.algorithms import blame_own_code
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.evaluation.measure import measure
from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.carft_core.runs.facts import facts_of
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import evaluation_digest, present
from carft_sweep.carft_core.runs.models import UNMERGED, load_classifier, merged, models_of
from carft_sweep.carft_core.runs.result import Evaluation
from carft_sweep.carft_core.training.ranks import current_ranks
from carft_sweep.carft_core.training.setup import open_setup


@dataclass(frozen=True)
class RunResult:
    """The result of a run. Metric names are those of docs/metrics.md; top-1 is in [0, 1]."""

    digest: str
    seed: int | None
    metrics: Mapping[str, float]
    """By metric name, of the run's own (unmerged) model."""
    merges: Mapping[str, Mapping[str, Any]]
    """By label (`wise_ft@0.5`): `step`, `values` and `metrics`."""
    warnings: Sequence[str]
    seconds: float
    """How long training took, without evaluation."""
    facts: Mapping[str, Any]
    """What a fair comparison must share: model, data, transform, budget, contexts."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def finish(workdir: Path, config: TrialConfig, seed: int) -> RunResult:
    """Evaluate a trained run on every split, unmerged and at every point of its merges; return the
    result. Existing evaluations are not repeated. Raises RequestError when the folder holds no
    trained run."""
    world = current_ranks()
    config, folder = config.for_seed(seed), RunFolder(workdir, writes=world.is_main)
    # Decided by rank 0, once it has written what training left.
    missing = world.agree(_missing(folder, config) if world.is_main else {})
    if missing:
        if not folder.is_trained(config):
            raise RequestError(f"{workdir} is not trained to its end; train it first")
        with blame_own_code(config.algorithm):
            _evaluate(folder, config, missing)
    world.agree(True)  # the files are there
    if not config.keep.weights and folder.writes:
        for kind in ("last", "best_val"):
            folder.weights(kind).unlink(missing_ok=True)
    return read_result(workdir, config)


def is_complete(workdir: Path, config: TrialConfig) -> bool:
    """Return whether a run has its `config.json`, is trained, and all models of `config`
    measured."""
    folder = RunFolder(workdir)
    is_trained = (workdir / "config.json").exists() and folder.trained() is not None
    return is_trained and not _missing(folder, config)


def read_result(workdir: Path, config: TrialConfig) -> RunResult:
    """Return the result of a complete run, for the merges that `config` requests. Raises
    RequestError when an evaluation is missing."""
    folder = RunFolder(workdir)
    claimed = folder.claimed()
    evaluations: dict[str, dict[str, Any]] = {}
    for label in models_of(config):
        evaluation = read_json(folder.metrics(label), Evaluation)
        if evaluation is None:
            raise RequestError(f"{workdir} has no evaluation of {label}")
        evaluations[label] = evaluation
    own = evaluations.pop(UNMERGED)
    trained = folder.trained() or {}
    warnings = config.algorithm.warnings([item["metrics"] for item in folder.history()])
    return RunResult(
        digest=claimed["digest"],
        seed=claimed["seed"] if config.algorithm.trains else None,
        metrics=own["metrics"],
        merges={
            label: {key: item[key] for key in ("step", "values", "metrics")}
            for label, item in evaluations.items()
        },
        warnings=[*warnings, *trained.get("warnings", ())],
        seconds=trained.get("seconds", 0.0),
        facts=own["facts"],
    )


def _missing(folder: RunFolder, config: TrialConfig) -> dict[str, str]:
    """Return, by label, the digest of each requested evaluation that the folder does not have."""
    claimed = folder.claimed()
    config, missing = config.for_seed(claimed["seed"]), dict[str, str]()
    for label, model in models_of(config).items():
        digest = evaluation_digest(claimed["digest"], model, config)
        evaluation = read_json(folder.metrics(label), Evaluation)
        if evaluation is None or evaluation["digest"] != digest:
            missing[label] = digest
    return missing


def _evaluate(folder: RunFolder, config: TrialConfig, digests: Mapping[str, str]) -> None:
    """Measure the models of a run that `digests` names by label; write each with its digest."""
    models = {label: model for label, model in models_of(config).items() if label in digests}
    setup = open_setup(config)
    tuned = load_classifier(folder, config, setup)
    files = {label: folder.predictions(label) for label in models if folder.writes}
    for left in folder.path.glob("evaluations/*/.predictions.parquet.*") if folder.writes else ():
        left.unlink(missing_ok=True)  # by a process that was killed while it measured
    classifiers = {
        label: functools.partial(merged, model, tuned, setup) for label, model in models.items()
    }
    with setup.teacher.loader:
        measured = measure(classifiers, setup, config, files if config.keep.predictions else {})
    if not folder.writes:
        return
    facts = facts_of(config, setup)
    for label, metrics in measured.items():
        merge, point = models[label] or (None, None)
        write_json(
            folder.metrics(label),
            {
                "digest": digests[label],
                "label": label,
                "step": 0 if point is None else point.step,
                "values": {} if point is None else dict(point.values),
                "metrics": metrics,
                "facts": facts if merge is None else facts | present(merge_mark=merge.mark),
            },
        )
