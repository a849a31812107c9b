"""Open what a run needs: its data, the zero-shot model, and the heads of the retention tasks."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from carft_sweep.carft_core.config.trial import EvalConfig, ModelConfig, PromptsConfig, TrialConfig
from carft_sweep.carft_core.config.user_code import own_code
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData, Split, open_data
from carft_sweep.carft_core.data.base import DataConfig, cache_open
from carft_sweep.carft_core.data.contract import open_checked
from carft_sweep.carft_core.data.loader import default_workers
from carft_sweep.carft_core.data.transforms import AUGMENTATIONS
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.clip import OpenedClip, open_model, weights_digest
from carft_sweep.carft_core.models.prompts import (
    TemplateSet,
    class_weights,
    context_set,
    template_set,
    text_features,
    zero_shot_head,
)
from carft_sweep.carft_core.models.teacher import Teacher, open_teacher
from carft_sweep.carft_core.training.compilation import should_compile
from carft_sweep.carft_core.training.numerics import (
    Precision,
    resolve_device,
    resolve_precision,
    usable_cores,
)
from carft_sweep.carft_core.training.optim import images_of_step, schedule_of
from carft_sweep.carft_core.training.ranks import current_ranks

RETENTION = "retention/"
"""How the metric names of other tasks begin."""


@dataclass(frozen=True, eq=False)
class RunSetup:
    """Everything of a run that does not change while it trains."""

    data: FamilyData
    teacher: Teacher
    family: Family
    other_heads: Mapping[str, nn.Linear]
    """By metric name (`retention/<family>`) the zero-shot heads of other tasks, on which the tower
    of a run is only tested, as LDIFS measures forgetting (Mukhoti et al. 2023, "Fine-tuning can
    cripple your foundation model")."""

    def measured(self) -> Mapping[str, Split]:
        """Return every split on which a finished run is measured, by metric name."""
        return {name: split for name, split in self.teacher.splits.items() if name != "train"}


def open_setup(config: TrialConfig) -> RunSetup:
    """Open what a config names; a process keeps the last two setups, since a sweep's runs share
    them. Raises RequestError when model, data or prompts cannot be used as asked."""
    world = current_ranks()
    device = world.device(resolve_device(config.device))
    workers = config.workers
    if workers == "auto":
        workers = default_workers(device.type, usable_cores())
    return _open_setup(
        config.model,
        weights_digest(config.model.name, config.model.pretrained),
        config.data,
        template_set(config.prompts.classes),
        context_set(config.prompts.contexts, config.data),
        config.eval,
        device,
        resolve_precision(config.precision, device),
        config.deterministic,
        _compiles(config, device),
        math.ceil(workers / world.size),
    )


def _compiles(config: TrialConfig, device: torch.device) -> bool:
    """Return whether the steps of a run are compiled."""
    if not config.algorithm.takes_steps:
        return False
    optim, train, balanced = config.optim, open_data(config.data).train, config.data.balanced
    images = images_of_step(optim, train, balanced=balanced)
    steps = schedule_of(optim, train, balanced=balanced).steps
    return should_compile(config.compile, device, steps * images)


@cache_open(2)
def _open_setup(
    model: ModelConfig,
    model_digest: str,
    data_config: DataConfig,
    classes: TemplateSet,
    contexts: TemplateSet,
    evaluation: EvalConfig,
    device: torch.device,
    precision: Precision,
    deterministic: bool,
    compiled: bool,
    workers: int,
) -> RunSetup:
    clip = _clip(model.name, model.pretrained, model_digest)
    data = open_data(data_config)
    others = {
        f"{RETENTION}{name}": task for name, task in other_data(data_config, evaluation).items()
    }
    training = {"train": data.train, "id/val": data.id_val}
    measured = {**data.measured(), **{name: task.id_test for name, task in others.items()}}
    transform = clip.transform
    if data_config.augmentation is not None:
        transform = replace(transform, augmentation=AUGMENTATIONS[data_config.augmentation])
    teacher = open_teacher(
        clip,
        data.class_names,
        {**training, **measured},
        {
            **dict.fromkeys(training, views_digest(data_config.family, data.digest_of_training)),
            **dict.fromkeys(measured, views_digest(data_config.family, data.digest)),
            **{
                name: views_digest(name.removeprefix(RETENTION), task.digest)
                for name, task in others.items()
            },
        },
        transform=transform,
        classes=classes,
        contexts=contexts,
        device=device,
        precision=precision,
        deterministic=deterministic,
        compiled=compiled,
        batch_size=evaluation.images_at_once,
        workers=workers,
    )
    heads = {name: _other_head(clip, name, task, device) for name, task in others.items()}
    return RunSetup(data, teacher, FAMILIES[data_config.family], heads)


def views_digest(family: str, digest: str) -> str:
    """Return the digest of data, with the user's code if the user's family makes the views."""
    code = own_code(FAMILIES[family].open)
    return digest if code is None else f"{digest} {code}"


@functools.lru_cache(maxsize=2)
def _clip(name: str, pretrained: str | None, digest: str) -> OpenedClip:
    """Open the CLIP with this digest of its weights, kept until its files change."""
    del digest
    return open_model(name, pretrained)


def _other_head(clip: OpenedClip, name: str, data: FamilyData, device: torch.device) -> nn.Linear:
    templates = templates_of(name.removeprefix(RETENTION))
    try:
        w_raw = text_features(clip, templates, data.class_names, device=device)
    except RequestError as error:
        raise RequestError(f"eval.{name.replace('/', ': ')}: {error}") from None
    return zero_shot_head(clip.logit_scale, class_weights(w_raw)).requires_grad_(False).to(device)


def other_data(config: DataConfig, evaluation: EvalConfig) -> dict[str, FamilyData]:
    """Return the families of `eval.retention` but the run's own, opened; a process opens each once.
    Raises RequestError for a family that cannot be opened or has no test split."""
    names = [name for name in evaluation.retention if name != config.family]
    if evaluation.retention and not names:
        raise RequestError(
            f"eval.retention: {config.family} is what the run is tuned on; name other families"
        )
    return {name: _other_data(FAMILIES[name], config, evaluation) for name in names}


def _other_data(family: Family, own: DataConfig, evaluation: EvalConfig) -> FamilyData:
    root = evaluation.retention_root
    if root is None and FAMILIES[own.family].folders:
        root = own.root
    if family.folders and root is None:
        raise RequestError(
            f"eval.retention_root: which folder holds the data sets? {own.family} does not "
            f"say it, and {family.name} lies there"
        )
    place = str(Path(root).expanduser().absolute()) if root and family.folders else None
    try:
        data = _opened_whole(DataConfig(family=family.name, root=place, shifts=()), family.open)
    except RequestError as error:
        raise RequestError(f"eval.retention: {family.name}: {error}") from None
    if data.test is None:
        raise RequestError(f"eval.retention: {family.name} has no test in distribution")
    return data


_opened_whole = cache_open(32)(open_checked)


def templates_of(family: str) -> TemplateSet:
    """Return a family's own default for `prompts.classes`."""
    default = PromptsConfig().classes
    return template_set(str(FAMILIES[family].defaults.get("prompts.classes", default)))
