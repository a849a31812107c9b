"""What a run's folder tells of its training: every epoch, and how long it took."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracking.records import RunRecord


@dataclass(frozen=True)
class History:
    """The epochs of one run; epoch 0 is the model before training."""

    seconds: float
    """Of training, without evaluation."""
    metrics: Sequence[Mapping[str, float]]
    """By epoch; finite numbers only."""

    @property
    def epochs(self) -> int:
        """How many were trained."""
        return len(self.metrics) - 1

    def values(self, metric: str) -> dict[int, float]:
        """A metric by epoch, where it was measured."""
        return {epoch: found[metric] for epoch, found in enumerate(self.metrics) if metric in found}


def read_history(run: RunRecord) -> History | None:
    """None where the run has no folder here, or nothing that can be read in it."""
    if run.folder is None:
        return None
    try:
        told = json.loads((run.folder / "history.json").read_text())
        epochs = [_finite(item["metrics"]) for item in told]
        seconds = sum(float(item["seconds"]) for item in told)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return History(seconds, epochs) if epochs else None


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
