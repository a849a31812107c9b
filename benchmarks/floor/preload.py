"""What the bare loops compute on, made once by the product: the only product internals here.

Everything else in `benchmarks/floor` knows the product by `trial_config` and `train`, and this
module by its functions. When the product's data, loader or teacher change, adapt `_open`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import carft_core
from carft_core.config import TrialConfig, trial_config
from carft_core.data import Split
from carft_core.data.loader import Loader, Passes, Plan, training_plan
from carft_core.prepare import Prepared, prepared

Batches = list[tuple[Tensor, Tensor]]
"""(images [B, 3, S, S] float32 normalised, labels [B] int64) of each batch."""

PACKAGE = Path(carft_core.__file__).parent
MODEL = PACKAGE / "builtin" / "tiny_clip"
RECIPE = PACKAGE.parent / "sweeps" / "kl_weight.yaml"


def recipe_config(algorithm: str, **changes: Mapping[str, Any] | list[Any]) -> TrialConfig:
    """A run of the shipped recipe `kl_weight`; `changes` are merged into its sections."""
    fields: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["trial"]
    fields["algorithm"] = {"name": algorithm}
    for section, values in changes.items():
        if isinstance(values, Mapping):
            fields[section] = {**fields.get(section, {}), **values}
        else:
            fields[section] = values
    return trial_config(fields)


@dataclass(frozen=True)
class _Product:
    """The product's side of what is preloaded."""

    stand: Prepared
    config: TrialConfig

    def training(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch (from 1) as `train` sees them."""
        split, size = self.stand.data.train, self.config.optim.batch_size
        plan = training_plan(split, batch_size=size, seed=seed, balanced=False, whole_passes=True)
        per_epoch = math.ceil(len(split) / size)
        return self._batches(split, plan, range((epoch - 1) * per_epoch, epoch * per_epoch), seed)

    def evaluation(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an evaluated split."""
        split = self.stand.measured()[name]
        plan = Passes(len(split), self.config.eval.batch_size)
        return self._batches(split, plan, range(plan.steps), None)

    def _batches(
        self, split: Split, plan: Plan, steps: range, seed: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        transform = self.stand.teacher.transform
        with Loader(split, transform=transform, plan=plan, seed=seed) as loader:
            for batch in loader.steps(steps):
                yield transform.normalise(batch.images), batch.labels


def _open(config: TrialConfig) -> _Product:
    return _Product(prepared(config), config)


def evaluation_splits(config: TrialConfig) -> dict[str, Iterator[tuple[Tensor, Tensor]]]:
    """The batches of every evaluated split by metric name, rendered when they are asked for."""
    product = _open(config)
    return {name: product.evaluation(name) for name in product.stand.measured()}


def preload(config: TrialConfig, seed: int) -> dict[str, Any]:
    """All that a bare run of `config` needs, as tensors and plain data.

    `epochs` is a list of Batches, `splits` Batches by metric name, `w_cls` [C, d], `w_ctx` [K, d].
    """
    product = _open(config)
    teacher, optim = product.stand.teacher, config.optim
    if optim.epochs is None or optim.micro_batch or optim.batch_norm != "frozen":
        raise ValueError("the bare loop trains in epochs, without micro-batches")
    merges = config.as_dict()["merges"]
    return {
        "model": str(MODEL),
        "epochs": [list(product.training(seed, epoch + 1)) for epoch in range(optim.epochs)],
        "splits": {name: list(batches) for name, batches in evaluation_splits(config).items()},
        "w_cls": teacher.w_cls.cpu(),
        "w_ctx": teacher.w_ctx.cpu(),
        "scale": teacher.scale,
        "optim": optim.model_dump(),
        "alphas": merges[0]["alphas"] if merges else [],
        "threads": torch.get_num_threads(),
    }
