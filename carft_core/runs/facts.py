"""The facts of a run: what a fair comparison must share, and what a report says of it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from carft_sweep.carft_core.algorithms import Soup
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import FamilyData
from carft_sweep.carft_core.models.prompts import words_to_mark
from carft_sweep.carft_core.runs.identity import (
    MEASURING_REVISION,
    TRAINING_REVISION,
    own_code_of,
    present,
)
from carft_sweep.carft_core.training.setup import RunSetup, other_data


def facts_of(config: TrialConfig, setup: RunSetup) -> dict[str, Any]:
    """Return what warnings, tables and exports need to know of a run, as plain data.

    `own_weights` says that weights differ from the zero-shot model's though nothing was trained, as
    a soup's. `transform` makes the views of evaluation, `augmentation` those of training: None
    where nothing is trained, or where the family makes its own training views.
    """
    teacher, data = setup.teacher, setup.data
    contexts = teacher.contexts
    domains = setup.family.domains
    budget = (
        f"{config.optim.epochs} epochs" if config.optim.epochs else f"{config.optim.steps} steps"
    )
    if config.data.balanced:
        budget += ", balanced"
    trains = config.algorithm.trains
    steps = trains and not config.algorithm.solves
    others = other_data(config.data, config.eval)
    members = [*config.algorithm.members] if isinstance(config.algorithm, Soup) else None
    follows = steps and config.data.augmentation is not None
    return {
        "model": teacher.clip.digest,
        "data": data.digest,
        "family": f"{setup.family.name} v{setup.family.version}",
        "split": config.data.split_number,
        "transform": repr(teacher.transform),
        "augmentation": repr(teacher.transform.augmentation) if follows else None,
        "budget": budget if steps else None,
        "result": config.keep.result if trains else None,
        **present(own_weights=not trains and not config.algorithm.starts_at_zero_shot),
        **present(members=members),
        "precision": teacher.precision,
        "device": setup.device.type,
        "contexts": contexts.name,
        "contexts_name": words_to_mark(contexts, config.data, domains),
        "skipped": {name: sorted(bad) for name, bad in data.skipped.items()},
        "outside_means": sorted(data.outside_mean),
        "images": {name: len(split) for name, split in setup.measured().items()},
        "retention": _retention(others) if others else None,
        "data_notes": [text for source in (data, *others.values()) for text in source.notes],
        "revision": f"{TRAINING_REVISION}.{MEASURING_REVISION}",
        "own_code": own_code_of(config),
        "versions": {name: version(name) for name in ("torch", "torchvision", "open_clip_torch")},
    }


def _retention(others: Mapping[str, FamilyData]) -> str:
    """Return the tasks as `Retention(field=value)`, whose differing fields a warning shows."""
    digests = (f"{name}={other.digest[:12]}" for name, other in others.items())
    return f"Retention({', '.join(digests)})"
