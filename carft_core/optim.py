"""The optimiser and its learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from carft_core.config_sections import OptimConfig


def adamw(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the named parameters that require a gradient.

    WiSE-FT decays all of them; with `decay_norms_and_biases` false, vectors (norms, biases) and
    scalars are left out of the decay.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in parameters:
        if parameter.requires_grad:
            vector = parameter.ndim <= 1
            (plain if vector and not config.decay_norms_and_biases else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """The rate of the 0-based `step` of `steps`: linear warm-up, then half a cosine to 0.

    Source: WiSE-FT's `cosine_lr`: `peak * (step + 1) / warmup`, then
    `peak * (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def warmup_steps(warmup: float, steps: int) -> int:
    """`optim.warmup` in steps: a fraction of all below 1, else a number; under `steps`."""
    asked = round(warmup * steps) if warmup < 1 else round(warmup)
    return min(asked, steps - 1)
