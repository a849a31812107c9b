"""How much of the zero-shot model is left on other tasks than the one that was tuned on.

The image tower, tuned or merged, is tested on other families with their zero-shot heads, as LDIFS
measures forgetting (Mukhoti et al. 2023, "Fine-tuning can cripple your foundation model").
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from carft_core.clip import open_model
from carft_core.config import TrialConfig
from carft_core.config_sections import DataConfig, ModelConfig, PromptsConfig
from carft_core.data import FAMILIES, Family, FamilyData, Split
from carft_core.errors import RequestError
from carft_core.prompts import TemplateSet, class_weights, template_set, text_features

if TYPE_CHECKING:
    from carft_core.bench import Bench

START = "retention/"
"""How the metric names begin."""


@dataclass(frozen=True, eq=False)
class OtherTask:
    """A task that is only tested on."""

    name: str
    """Its metric name, `retention/<family>`."""
    test: Split
    head: nn.Linear
    """Rows `logit_scale * W_cls[c]` of its own classes and templates; never trained."""


def other_data(config: TrialConfig) -> dict[str, FamilyData]:
    """The families of `eval.retention` but the run's own, opened; a process opens each once.

    Raises RequestError for one that cannot be opened or has no test.
    """
    names = [name for name in config.eval.retention if name != config.data.family]
    if config.eval.retention and not names:
        raise RequestError(
            f"eval.retention: {config.data.family} is what the run is tuned on; name other families"
        )
    return {name: _data(FAMILIES[name], config) for name in names}


def templates_of(name: str) -> TemplateSet:
    """A family's own default for `prompts.classes`."""
    default = PromptsConfig().classes
    return template_set(str(FAMILIES[name].defaults.get("prompts.classes", default)))


def _data(family: Family, config: TrialConfig) -> FamilyData:
    root = config.eval.retention_root
    if root is None and FAMILIES[config.data.family].folders:
        root = config.data.root
    if family.folders and root is None:
        raise RequestError(
            f"eval.retention_root: which folder holds the data sets? {config.data.family} does not "
            f"say it, and {family.name} lies there"
        )
    place = str(Path(root).expanduser().absolute()) if root and family.folders else None
    try:
        data = _opened(DataConfig(family=family.name, root=place, shifts=()), family.open)
    except RequestError as error:
        raise RequestError(f"eval.retention: {family.name}: {error}") from None
    if data.test is None:
        raise RequestError(f"eval.retention: {family.name} has no test in distribution")
    return data


@functools.lru_cache(maxsize=32)
def _opened(config: DataConfig, opened: Callable[[DataConfig], FamilyData]) -> FamilyData:
    return opened(config)


def open_others(config: TrialConfig, bench: Bench, cache: Path | None) -> tuple[OtherTask, ...]:
    """What the models of a run are tested on besides. The last ones stay open.

    Raises RequestError as `other_data` does, and for a prompt that the model cannot read.
    """
    tests = tuple(
        (name, data.class_names, data.id_test) for name, data in other_data(config).items()
    )
    return _with_heads(config.model, tests, bench.device, cache) if tests else ()


@functools.lru_cache(maxsize=2)
def _with_heads(
    model: ModelConfig,
    tests: Sequence[tuple[str, tuple[str, ...], Split]],
    device: torch.device,
    cache: Path | None,
) -> tuple[OtherTask, ...]:
    clip = open_model(model.name, model.pretrained, cache=cache)
    found = []
    for name, class_names, test in tests:
        try:
            w_raw = text_features(clip, templates_of(name), class_names, cache=cache)
        except RequestError as error:
            raise RequestError(f"eval.retention: {name}: {error}") from None
        w_cls = class_weights(w_raw)
        head = nn.Linear(w_cls.shape[1], len(w_cls), bias=False).requires_grad_(False)
        head.weight.copy_(clip.logit_scale * w_cls)
        found.append(OtherTask(f"{START}{name}", test, head.to(device)))
    return tuple(found)


def retention_metrics(
    retained: Mapping[str, float], zero_shot: Mapping[str, float]
) -> dict[str, float]:
    """`retention/<family>/top1`, their mean, and what that is above the zero-shot model's.

    Both are given as the top-1 of each other task by its metric name; nothing where there is none.
    A negative gain is what was forgotten.
    """
    if not retained:
        return {}
    mean = sum(retained.values()) / len(retained)
    before = sum(zero_shot.values()) / len(zero_shot)
    found = {f"{name}/top1": value for name, value in retained.items()}
    return {**found, "retention/mean/top1": mean, "retention/gain/top1": mean - before}
