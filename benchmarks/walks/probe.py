"""An algorithm as a user would write one, that logs a known number and may run out of memory once.

It is imported by the sweeps of this benchmark, in the driver and in the worker.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from benchmarks.walks.recorder import LOGGED, mark
from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, Batch, Loss
from carft_sweep.carft_core.models.teacher import Teacher


@ALGORITHMS.register
class Probe(Algorithm):
    """Cross-entropy, and a constant beside it."""

    name: ClassVar[str] = "probe"
    summary: ClassVar[str] = "Fine-tuning that logs a constant"

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Raise OutOfMemoryError where the file that the environment names is there, once."""
        del teacher
        file = Path(os.environ.get("CARFT_WALK_OOM", "nothing"))
        if file.exists():
            file.unlink()
            mark("raised")
            raise torch.OutOfMemoryError("out of memory, as the benchmark wants it")
        loss = batch.cross_entropy(model(batch.images))
        return loss, {"constant": torch.full((), LOGGED)}
