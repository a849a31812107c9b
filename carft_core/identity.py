"""What makes two runs the same: the digests of a run and of an evaluation."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from carft_core.clip import weights_digest
from carft_core.config import TrialConfig
from carft_core.contexts import context_set
from carft_core.data import FAMILIES, FamilyData
from carft_core.data.augmentation import AUGMENTATIONS
from carft_core.data.splits import TRAINING_SPLITS, prepare
from carft_core.device import resolve_device, resolve_precision
from carft_core.prompts import template_set
from carft_core.retention import other_data, templates_of
from carft_core.sources import sources_behind

CORE = Path(__file__).parent
TRAINING_SOURCES = (
    "bench.py",
    "clip.py",
    "clip_source.py",
    "clip_weights.py",
    "contexts.py",
    "device.py",
    "optim.py",
    "prompts.py",
    "schedule.py",
    "teacher.py",
    "train.py",
)
"""The sources that decide the weights of every run; an algorithm's and a family's are added."""
SPLIT_SOURCES = ("balanced.py", "base.py", "held_out.py", "loader.py", "splits.py", "subset.py")
"""The same of `data`."""
OUTSIDE = {"root", "shifts", "augmentation", "bad_files", "balanced"}
"""Fields of `data` that do not stand there as such; what the last three come to does."""
MEASURING_SOURCES = ("evaluate.py", "measure.py", "metrics.py", "predictions.py", "units.py")


@dataclass(frozen=True)
class Identity:
    """A run's digest, and what it was made of."""

    digest: str
    parts: Mapping[str, Any]


def identify(config: TrialConfig, seed: int, *, cache: Path | None = None) -> Identity:
    """The identity of one run: whatever decides its weights, and nothing else.

    `data.root`, `data.shifts`, `merges`, `eval`, `keep` and `workers` are outside; so is
    `optim.micro_batch`, unless the algorithm's loss depends on it. Inside is what an augmentation
    does, not its name, and which images training lacks, not `data.bad_files`. An algorithm that
    trains nothing has no seed, no optimiser, no augmentation and no balance, but may have the split
    of a seed. Raises RequestError when model or data cannot be opened.
    """
    config = config.for_seed(seed)
    algorithm = config.algorithm
    data = prepare(config.data)
    device = resolve_device(config.device)
    parts: dict[str, Any] = {
        "model": weights_digest(config.model.name, config.model.pretrained, cache=cache),
        "data": {
            "digest": data.digest_of_training,
            **_told(config.data.model_dump(exclude=OUTSIDE)),
            "skipped": _skipped(data, training=True),
        },
        "prompts": {
            "classes": template_set(config.prompts.classes).digest,
            "contexts": context_set(config.prompts, config.data).digest,
        },
        "algorithm": {"name": algorithm.name, **algorithm.model_dump(mode="json")},
        "device": device.type,
        "precision": resolve_precision(config.precision, device),
        "code": training_code(config),
    }
    if algorithm.trains:
        outside = set() if algorithm.loss_depends_on_batch else {"micro_batch"}
        parts["optim"] = _told(config.optim.model_dump(mode="json", exclude=outside))
        parts["seed"] = seed
        views = config.data.augmentation
        parts["augmentation"] = None if views is None else asdict(AUGMENTATIONS[views])
        parts |= _told({"balanced": config.data.balanced})
    return Identity(digest_of(parts), parts)


def _told(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that are None or False, so that a new field makes no old run another."""
    return {
        name: value for name, value in fields.items() if value is not None and value is not False
    }


def evaluation_digest(training_digest: str, label: str, config: TrialConfig) -> str:
    """The digest of one evaluated model of a run: a new alpha, shift or task of `eval.retention` is
    evaluated, not trained.

    Raises RequestError when the data cannot be opened.
    """
    data = prepare(config.data)
    # A digest that training knows as well need not stand here again.
    measured: dict[str, Any] = {} if data.training_digest is None else {"data": data.digest}
    measuring = {CORE / name for name in MEASURING_SOURCES}
    others = other_data(config)
    if others:
        measuring.add(CORE / "retention.py")
        measuring |= {file for name in others for file in sources_behind(FAMILIES[name].open)}
        measured["retention"] = {
            name: [other.digest, templates_of(name).digest] for name, other in others.items()
        }
    for merge in config.merges:
        own = not type(merge).__module__.startswith(f"{CORE.name}.")
        if own and any(point.label == label for point in merge.points()):
            measuring |= sources_behind(type(merge))
    return digest_of(
        {
            "training": training_digest,
            "label": label,
            "result": config.keep.result,
            "context_probe": config.eval.context_probe,
            "logits": config.eval.logits,
            "predictions": config.keep.predictions,
            "code": source_digest(measuring),
            "skipped": _skipped(data, training=False),
            **measured,
        }
    )


def _skipped(data: FamilyData, *, training: bool) -> dict[str, list[str]]:
    """The images that were left out of what trains, or of what is only measured."""
    return {
        name: sorted(bad)
        for name, bad in data.skipped.items()
        if (name in TRAINING_SPLITS) == training
    }


def training_code(config: TrialConfig) -> str:
    """The digest of the sources that train this run, a user's own algorithm or family included."""
    return source_digest(_shared_sources(config) | sources_behind(type(config.algorithm)))


def shared_code(config: TrialConfig) -> str:
    """The same without the algorithm's own source: equal for all that runs on one data family."""
    return source_digest(_shared_sources(config))


def _shared_sources(config: TrialConfig) -> set[Path]:
    core = {CORE / name for name in TRAINING_SOURCES}
    data = {CORE / "data" / name for name in SPLIT_SOURCES}
    return core | data | sources_behind(FAMILIES[config.data.family].open)


def source_digest(files: Iterable[Path]) -> str:
    """sha256 over the contents of source files, whatever their place on this machine."""
    hashes = sorted((file.name, _file_digest(file)) for file in files)
    return digest_of(hashes)


@functools.cache
def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digest_of(data: object) -> str:
    """sha256 of plain data, independent of the order of keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
