"""The facts of a run: what a fair comparison must share, and what a report says of it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from carft_sweep.carft_core.algorithms import Soup
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.models.prompts import leaked_domains
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
    trains, steps = config.algorithm.trains, config.algorithm.takes_steps
    others = other_data(config.data, config.eval)
    tasks = [f"{name}={task.digest[:12]}" for name, task in others.items()]
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
        "asked": {
            "keep.result": config.keep.result,
            "data.shifts": config.data.shifts,
            "eval.retention": config.eval.retention,
        },
        **present(own_weights=not trains and not config.algorithm.starts_at_zero_shot),
        **present(members=members),
        "precision": teacher.precision,
        "device": teacher.device.type,
        "contexts": contexts.name,
        "contexts_name": leaked_domains(contexts, config.data, domains),
        "skipped": {name: sorted(bad) for name, bad in data.skipped.items()},
        "outside_means": sorted(data.outside_mean),
        "images": {name: len(split) for name, split in setup.measured().items()},
        # Its differing fields are shown by a warning.
        "retention": f"Retention({', '.join(tasks)})" if others else None,
        "data_notes": [text for source in (data, *others.values()) for text in source.notes],
        "revision": f"{TRAINING_REVISION}.{MEASURING_REVISION}",
        "own_code": own_code_of(config),
        "versions": {name: version(name) for name in ("torch", "torchvision", "open_clip_torch")},
    }
