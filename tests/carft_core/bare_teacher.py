"""A teacher that knows a split and nothing else, under which any classifier predicts it."""

from __future__ import annotations

from typing import Any

import torch

from carft_sweep.carft_core.data import Split, Transform
from carft_sweep.carft_core.models.teacher import Teacher

NOTHING: dict[str, Any] = dict.fromkeys(
    ("clip", "classes", "contexts", "w_raw", "w_cls", "w_ctx", "classifier")
)


def bare_teacher(
    split: Split, transform: Transform, *, name: str = "id/test", **settings: Any
) -> Teacher:
    """`settings` has the precision, the batch size and the workers."""
    known: dict[str, Any] = {"class_names": (), "splits": {name: split}, "digests": {}}
    cpu: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32", "batch_size": 256}
    return Teacher(transform=transform, **NOTHING, **known, **cpu | settings)
