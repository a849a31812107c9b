"""What rows of a comparison must share, and what must be said of a row."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from carft_core.bench import Bench
from carft_core.config import TrialConfig
from carft_core.contexts import words_to_mark
from carft_core.data import FAMILIES, FamilyData
from carft_core.identity import MEASURING_REVISION, TRAINING_REVISION, own_code_of
from carft_core.retention import START, other_data


def facts_of(config: TrialConfig, bench: Bench) -> dict[str, Any]:
    """The facts of a run on its bench, as plain data.

    `transform` is what evaluation shows, `augmentation` what training drew: None where nothing is
    trained, or where the family has training views of its own.
    """
    contexts = bench.teacher.contexts
    domains = FAMILIES[config.data.family].domains
    budget = (
        f"{config.optim.epochs} epochs" if config.optim.epochs else f"{config.optim.steps} steps"
    )
    if config.data.balanced:
        budget += ", balanced"
    trains = config.algorithm.trains
    others = other_data(config)
    splits = dict(bench.evaluated_splits())
    splits |= {f"{START}{name}": other.id_test for name, other in others.items()}
    follows = trains and config.data.augmentation is not None
    return {
        "model": bench.teacher.clip_digest,
        "data": bench.data.digest,
        "split": config.data.split_number,
        "transform": repr(bench.transform),
        "augmentation": repr(bench.transform.augmentation) if follows else None,
        "budget": budget if trains else None,
        "result": config.keep.result if trains else None,
        "precision": bench.precision,
        "device": bench.device.type,
        "contexts": contexts.name,
        "contexts_name": words_to_mark(contexts, config.data, domains),
        "skipped": {name: sorted(bad) for name, bad in bench.data.skipped.items()},
        "outside_means": sorted(bench.outside_means()),
        "images": {name: len(split) for name, split in splits.items()},
        "retention": _told(others) if others else None,
        "data_notes": [text for data in (bench.data, *others.values()) for text in data.notes],
        "revision": f"{TRAINING_REVISION}.{MEASURING_REVISION}",
        "own_code": own_code_of(config),
        "versions": {name: version(name) for name in ("torch", "open_clip_torch")},
    }


def _told(others: Mapping[str, FamilyData]) -> str:
    """In the form of a transform, of which a warning shows the fields that differ."""
    digests = (f"{name}={other.digest[:12]}" for name, other in others.items())
    return f"Retention({', '.join(digests)})"
