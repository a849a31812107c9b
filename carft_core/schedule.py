"""How long a run trains: its steps, and which of them are an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from carft_core.config import TrialConfig
from carft_core.data import Split


@dataclass(frozen=True)
class Schedule:
    """Steps of the optimiser, counted from 0; epochs from 1."""

    steps: int
    per_epoch: int

    @property
    def epochs(self) -> int:
        """How many there are; the last may be shorter."""
        return math.ceil(self.steps / self.per_epoch)

    def of_epoch(self, epoch: int) -> range:
        """The steps of one epoch."""
        return range((epoch - 1) * self.per_epoch, min(epoch * self.per_epoch, self.steps))


def schedule_of(config: TrialConfig, train: Split) -> Schedule:
    """That of a run on `train`: an epoch is `optim.steps_per_epoch`, else as many steps as a pass
    takes; with `data.balanced`, as many as show as many images as a pass."""
    optim = config.optim
    groups = len(set(train.groups)) if config.data.balanced and train.groups else 1
    per_epoch = optim.steps_per_epoch or math.ceil(len(train) / (optim.batch_size * groups))
    return Schedule(optim.steps or (optim.epochs or 1) * per_epoch, per_epoch)
