"""What a run tells of itself while it trains, and what it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Decision(Enum):
    """What `report` wants of a run."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True)
class EpochReport:
    """Where a run stands. Epoch 0 is the model before training."""

    epoch: int
    epochs: int
    step: int
    steps: int
    metrics: Mapping[str, float]
    seconds: float = 0.0
    timestamp: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Milliseconds since the Unix epoch, when it was measured."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


Report = Callable[[EpochReport], Decision]


def unwatched(report: EpochReport) -> Decision:
    """Go on, whatever happens."""
    del report
    return Decision.CONTINUE
