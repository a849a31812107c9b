"""The tensors that the bare loop computes on, made once by the product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from carft_sweep import carft_core, sweeps
from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data.loader import BatchSource, EpochPlan
from carft_sweep.carft_core.models.teacher import Teacher, to_views
from carft_sweep.carft_core.training.setup import open_setup

Preloaded = list[tuple[Tensor, Tensor]]
"""(images [B, 3, S, S] float32 normalised, labels [B] int64) of each batch."""

PACKAGE = Path(carft_core.__file__).parent
MODEL = PACKAGE / "builtin" / "tiny_clip"
RECIPE = Path(sweeps.__file__).parent / "kl_weight.yaml"


def recipe_config(algorithm: str, **changes: Mapping[str, Any] | list[Any]) -> TrialConfig:
    """Return a run's config by the recipe `kl_weight`, with `changes` in its sections."""
    fields: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["trial"]
    fields["algorithm"] = {"name": algorithm}
    for section, values in changes.items():
        if isinstance(values, Mapping):
            fields[section] = {**fields.get(section, {}), **values}
        else:
            fields[section] = values
    return trial_config(fields)


def _training(config: TrialConfig, seed: int, epoch: int) -> Preloaded:
    """Return the batches of an epoch (from 1) as `train` sees them."""
    teacher = open_setup(config).teacher
    plan = EpochPlan(len(teacher.splits["train"]), config.optim.batch_size, seed)
    steps = range((epoch - 1) * plan.steps, epoch * plan.steps)
    with teacher.loader as loader:
        return [
            (to_views(batch.images, teacher.transform, teacher.device), batch.labels)
            for batch in loader.steps(BatchSource("train", plan, seed), steps)
        ]


def evaluation_splits(config: TrialConfig) -> dict[str, Iterator[tuple[Tensor, Tensor]]]:
    """Return the batches of each evaluated split by metric name, rendered when they are read."""
    setup = open_setup(config)
    return {name: _evaluation(setup.teacher, name) for name in setup.measured()}


def _evaluation(teacher: Teacher, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    labels = teacher.splits[name].labels.split(teacher.batch_size)
    yield from zip(teacher.views(name), labels, strict=True)


def preload(config: TrialConfig, seed: int) -> dict[str, Any]:
    """Return all that a bare run of `config` needs, as tensors and plain data.

    `epochs` is a list of Preloaded, `splits` one by metric name, `w_cls` [C, d], `w_ctx` [K, d].
    """
    teacher, optim = open_setup(config).teacher, config.optim
    if optim.epochs is None or optim.micro_batch or optim.batch_norm != "frozen":
        raise ValueError("the bare loop trains in epochs, without micro-batches")
    merges = config.as_dict()["merges"]
    return {
        "model": str(MODEL),
        "epochs": [_training(config, seed, epoch + 1) for epoch in range(optim.epochs)],
        "splits": {name: list(batches) for name, batches in evaluation_splits(config).items()},
        "w_cls": teacher.w_cls.cpu(),
        "w_ctx": teacher.w_ctx.cpu(),
        "scale": teacher.scale,
        "optim": optim.model_dump(),
        "alphas": merges[0]["alphas"] if merges else [],
        "threads": torch.get_num_threads(),
    }
