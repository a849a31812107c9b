"""What runs stand on: the opened model, data and teacher, kept warm between runs of a process."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from carft_core.clip import open_model
from carft_core.config import ModelConfig, TrialConfig
from carft_core.data import FAMILIES, FamilyData, Split, Transform, prepare
from carft_core.data.base import DataConfig
from carft_core.data.transforms import AUGMENTATIONS
from carft_core.device import Precision, resolve_device, resolve_precision
from carft_core.prompts import (
    TemplateSet,
    class_weights,
    context_set,
    context_weights,
    template_set,
    text_features,
)
from carft_core.teacher import Teacher


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything of a run that does not change while it trains."""

    data: FamilyData
    transform: Transform
    teacher: Teacher
    device: torch.device
    precision: Precision
    further_metrics: tuple[str, ...] = ()
    """What its splits are measured by besides, as the family declares it."""
    validated_by: str = "top1"
    """The metric of `id/val` that tells the best epoch."""

    def evaluated_splits(self) -> Mapping[str, Split]:
        """Every split that a finished run is measured on, under its metric name."""
        return {"id/val": self.validation, **self.data.measured()}

    def test_parts(self) -> Mapping[str, tuple[int, ...]]:
        """The classes of each part of the test split that is measured by itself too, by its
        metric name."""
        return {f"id/test_{name}": classes for name, classes in self.data.parts.items()}

    def unions(self) -> Mapping[str, tuple[str, ...]]:
        """The splits that are measured once more taken together; all by their metric names."""
        return {
            f"ood/{name}": tuple(f"ood/{part}" for part in parts)
            for name, parts in self.data.unions.items()
        }

    def outside_means(self) -> frozenset[str]:
        """The metric names of splits out of distribution that are in no mean."""
        return frozenset(f"ood/{name}" for name in (*self.data.extras, *self.data.unions))

    @property
    def validation(self) -> Split:
        """The split on which settings are selected."""
        if self.data.val is None:
            raise ValueError("the data was opened without carving its validation split")
        return self.data.val


def open_bench(config: TrialConfig) -> Bench:
    """Open what `config` names. The last bench stays open, since a sweep's runs share it.

    Raises RequestError when model, data or prompts cannot be used as asked.
    """
    device = resolve_device(config.device)
    return _open(
        config.model,
        config.data,
        template_set(config.prompts.classes),
        context_set(config.prompts.contexts, config.data),
        device,
        resolve_precision(config.precision, device),
    )


@functools.lru_cache(maxsize=2)
def _open(
    model: ModelConfig,
    data_config: DataConfig,
    classes: TemplateSet,
    contexts: TemplateSet,
    device: torch.device,
    precision: Precision,
) -> Bench:
    data = prepare(data_config)
    clip = open_model(model.name, model.pretrained)
    transform = clip.transform
    if data_config.augmentation is not None:
        transform = replace(transform, augmentation=AUGMENTATIONS[data_config.augmentation])
    names = data.class_names
    w_cls = class_weights(text_features(clip, classes, names, device=device))
    w_ctx = context_weights(text_features(clip, contexts, names, device=device))
    teacher = Teacher(clip, w_cls, w_ctx, contexts, device)
    if device.type == "cuda":
        # fp32 is to mean fp32: cuDNN would otherwise round convolutions to TF32.
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        convert_conv2d_weight_memory_format(teacher.classifier, torch.channels_last)
    family = FAMILIES[data_config.family]
    return Bench(data, transform, teacher, device, precision, family.metrics, family.validated_by)
