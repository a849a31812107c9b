"""A finished run: its folder, the measuring of its models, and what is read back of them."""

from __future__ import annotations

import functools
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from carft_core.clip import ImageClassifier
from carft_core.config import TrialConfig
from carft_core.errors import RequestError
from carft_core.evaluate import OtherTask, measure, open_others
from carft_core.files import read_json, write_atomically, write_json
from carft_core.identity import Identity, evaluation_digest, facts_of
from carft_core.merges import Merge, MergePoint, State
from carft_core.prepare import Bench, open_bench


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """A state dict as safetensors, on CPU, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, lambda file: save_file(tensors, str(file)))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dict that `save_weights` wrote. Raises RequestError when it is not one."""
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise RequestError(f"{path} is not a safetensors file: {error}") from None


def save_progress(path: Path, progress: Mapping[str, Any]) -> None:
    """What a run needs to go on exactly: tensors and plain data, atomically."""
    write_atomically(path, lambda file: torch.save(dict(progress), file))


def load_progress(path: Path) -> dict[str, Any] | None:
    """What `save_progress` wrote; None when there is nothing, or nothing that can be read.

    An unreadable file costs its run a start from the beginning, not the sweep.
    """
    try:
        progress: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception:  # A torn or foreign file makes the unpickler fail in any way.
        return None
    return progress


UNMERGED = "unmerged"
"""The label of the run's own model."""
Model = tuple[Merge, MergePoint] | None
"""A point of a merge; None is the run's own model."""


def models_of(config: TrialConfig) -> dict[str, Model]:
    """By label: the run's own model, then each point of each merge.

    A merge with the zero-shot model has nothing to say of an algorithm that trains nothing.
    """
    models: dict[str, Model] = {UNMERGED: None}
    if config.algorithm.trains:
        for merge in config.merges:
            models |= {point.label: (merge, point) for point in merge.points()}
    return models


def tuned_state(file: Path, config: TrialConfig, zero_shot: State) -> State:
    """The weights that training came to, kept in `file`; `zero_shot` where nothing is trained.

    Raises RequestError when they are not kept.
    """
    if not config.algorithm.trains:
        return zero_shot
    if not file.exists():
        raise RequestError(
            f"the weights of the run in {file.parents[1]} are not kept (keep.weights: false); "
            "train it again with keep.weights: true"
        )
    return load_weights(file)


def model_state(model: Model, zero_shot: State, tuned: State) -> State:
    """The weights of one of a run's models, as a classifier's state dict."""
    if model is None:
        return tuned
    merge, point = model
    return merge.state(point, zero_shot, tuned)


@dataclass(frozen=True)
class RunResult:
    """What a run came to. Metric names are those of docs/metrics.md; top-1 is in [0, 1]."""

    digest: str
    seed: int | None
    metrics: Mapping[str, float]
    """Of the run's own model."""
    merges: Mapping[str, Mapping[str, Any]]
    """By label (`wise_ft@0.5`): `step`, `values` and `metrics`."""
    warnings: Sequence[str]
    seconds: float
    """Of training, without evaluation."""
    facts: Mapping[str, Any]
    """What a fair comparison must share: model, data, transform, budget, contexts."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, under `runs/<digest>/`."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """What an unfinished run goes on from; gone once it is done."""
        return self.path / "checkpoint.pt"

    def weights(self, kind: str) -> Path:
        """The classifier's state dict at the `last` or the `best_val` epoch."""
        return self.path / "weights" / f"{kind}.safetensors"

    def metrics(self, label: str) -> Path:
        """The metrics of one evaluated model."""
        return self.path / "evaluations" / label / "metrics.json"

    def predictions(self, label: str) -> Path:
        """The predictions of one evaluated model, per split and image."""
        return self.path / "evaluations" / label / "predictions.parquet"

    def claim(self, config: TrialConfig, seed: int, identity: Identity) -> None:
        """Write what this folder's run is. Raises RequestError when it is another's, or is named
        by the digest of another one.
        """
        name, digest = self.path.name, identity.digest
        if re.fullmatch("[0-9a-f]{64}", name) and name != digest:
            raise RequestError(
                f"{self.path} is the folder of run {name[:12]}, but here the run would be "
                f"{digest[:12]}: model, data, code, device or precision differ from its name"
            )
        file = self.path / "config.json"
        known = read_json(file)
        if known is None:
            parts = {"digest": identity.digest, "identity": dict(identity.parts)}
            write_json(file, {**parts, "seed": seed, "config": config.as_dict()})
        elif known["digest"] != identity.digest:
            raise RequestError(
                f"{self.path} holds another run ({known['digest'][:12]}), not "
                f"{identity.digest[:12]}; give each run a folder of its own"
            )

    def claimed(self) -> dict[str, Any]:
        """What `claim` wrote. Raises RequestError when there is no run here."""
        known: dict[str, Any] | None = read_json(self.path / "config.json")
        if known is None:
            raise RequestError(f"{self.path} holds no run")
        return known

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Every epoch's report so far."""
        write_json(self.path / "history.json", list(history))

    def history(self) -> list[dict[str, Any]]:
        """What `write_history` wrote."""
        return read_json(self.path / "history.json") or []

    def mark_trained(self, *, seconds: float) -> None:
        """Training is complete; written last."""
        write_json(self.path / "trained.json", {"seconds": seconds, "ended": time.time()})

    def is_trained(self, config: TrialConfig) -> bool:
        """Whether the weights that `config` asks for are there."""
        if read_json(self.path / "trained.json") is None:
            return False
        return not config.algorithm.trains or self.weights(config.keep.result).exists()


def finish(
    workdir: Path, config: TrialConfig, seed: int, *, cache: Path | None = None
) -> RunResult:
    """Evaluate a trained run on every split, unmerged and at every point of its merges.

    What was evaluated before is not evaluated again. Raises RequestError when the folder holds no
    trained run.
    """
    config, folder = config.for_seed(seed), RunFolder(workdir)
    missing = dict(_missing(folder, config))
    if missing:
        if not folder.is_trained(config):
            raise RequestError(f"{workdir} is not trained to its end; train it first")
        bench = open_bench(config, cache)
        _evaluate(folder, config, bench, open_others(config, bench, cache), missing)
    folder.checkpoint.unlink(missing_ok=True)
    if not config.keep.weights:
        for kind in ("last", "best_val"):
            folder.weights(kind).unlink(missing_ok=True)
    return read_result(workdir, config)


def is_complete(workdir: Path, config: TrialConfig) -> bool:
    """Whether the run is trained and every evaluation that `config` asks for is there."""
    folder = RunFolder(workdir)
    trained = read_json(folder.path / "trained.json") is not None
    return trained and not any(True for _ in _missing(folder, config))


def read_result(workdir: Path, config: TrialConfig) -> RunResult:
    """The result of a complete run, for the merges that `config` asks for.

    Raises RequestError when an evaluation is missing.
    """
    folder = RunFolder(workdir)
    claimed = folder.claimed()
    found: dict[str, dict[str, Any]] = {}
    for label in models_of(config):
        evaluation = read_json(folder.metrics(label))
        if evaluation is None:
            raise RequestError(f"{workdir} has no evaluation of {label}")
        found[label] = evaluation
    own = found.pop(UNMERGED)
    trained = read_json(folder.path / "trained.json")
    return RunResult(
        digest=claimed["digest"],
        seed=claimed["seed"] if config.algorithm.trains else None,
        metrics=own["metrics"],
        merges={
            label: {key: item[key] for key in ("step", "values", "metrics")}
            for label, item in found.items()
        },
        warnings=config.algorithm.warnings([item["metrics"] for item in folder.history()]),
        seconds=trained["seconds"] if trained else 0.0,
        facts=own["facts"],
    )


def _missing(folder: RunFolder, config: TrialConfig) -> Iterator[tuple[str, Model]]:
    claimed = folder.claimed()
    config, digest = config.for_seed(claimed["seed"]), claimed["digest"]
    for label, model in models_of(config).items():
        known = read_json(folder.metrics(label))
        if known is None or known["digest"] != evaluation_digest(digest, label, config):
            yield label, model


def _evaluate(
    folder: RunFolder,
    config: TrialConfig,
    bench: Bench,
    others: tuple[OtherTask, ...],
    models: Mapping[str, Model],
) -> None:
    # On the CPU, where the tuned weights are read to and the two are merged.
    zero_shot = {k: v.cpu() for k, v in bench.teacher.classifier.state_dict().items()}
    tuned = tuned_state(folder.weights(config.keep.result), config, zero_shot)
    digest = folder.claimed()["digest"]
    facts = facts_of(config, bench)
    for left in folder.path.glob("evaluations/*/.predictions.parquet.*"):
        left.unlink(missing_ok=True)  # by a process that was killed while it measured
    own: dict[str, float] | None = None
    for label, model in models.items():
        state = model_state(model, zero_shot, tuned)
        file = folder.predictions(label) if config.keep.predictions else None
        if own is not None and _same(state, tuned):
            metrics = own
            if file is not None:
                copied = functools.partial(shutil.copyfile, folder.predictions(UNMERGED))
                write_atomically(file, copied)
        else:
            # Held by nothing here, so that it is gone when the next one is made.
            metrics = measure(
                None if _same(state, zero_shot) else _classifier(bench, state),
                *(bench, others, config, file),
            )
        if label == UNMERGED:
            own = metrics
        write_json(
            folder.metrics(label),
            {
                "digest": evaluation_digest(digest, label, config),
                "label": label,
                "step": 0 if model is None else model[1].step,
                "values": {} if model is None else dict(model[1].values),
                "metrics": metrics,
                "facts": facts,
            },
        )


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts hold the very same tensors, as a merge's end points do."""
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _classifier(bench: Bench, state: Mapping[str, Tensor]) -> ImageClassifier:
    classifier = bench.teacher.new_classifier()
    classifier.load_state_dict(dict(state))
    return classifier
