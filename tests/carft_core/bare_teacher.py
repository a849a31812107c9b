"""A teacher that knows a split and nothing else, under which any classifier predicts it."""

from __future__ import annotations

from typing import Any

import torch

from carft_sweep.carft_core.data import Split, Transform
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.training.numerics import Precision


def bare_teacher(
    split: Split,
    transform: Transform,
    *,
    name: str = "id/test",
    precision: Precision = "fp32",
    batch_size: int = 256,
    workers: int = 0,
) -> Teacher:
    nothing: Any = None
    return Teacher(
        clip=nothing,
        class_names=(),
        splits={name: split},
        digests={},
        transform=transform,
        classes=nothing,
        contexts=nothing,
        w_raw=nothing,
        w_cls=nothing,
        w_ctx=nothing,
        classifier=nothing,
        device=torch.device("cpu"),
        precision=precision,
        batch_size=batch_size,
        workers=workers,
    )
