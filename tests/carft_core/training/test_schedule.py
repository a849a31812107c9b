"""How long a run is, and where its epochs end."""

from __future__ import annotations

import pytest
import torch

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import Source, Split
from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.carft_core.training.optim import Schedule, schedule_of

TRAIN = Split(
    ids=tuple("abcdefghij"),
    labels=torch.zeros(10, dtype=torch.int64),
    source=Source(),
    groups=("one",) * 7 + ("two",) * 3,
)


def schedule(*, balanced: bool = False, **optim: int) -> Schedule:
    data = {"family": "icon_shift", "balanced": balanced}
    config = trial_config({"data": data, "algorithm": "fine_tune", "optim": optim})
    return schedule_of(config.optim, TRAIN, balanced=config.data.balanced)


def test_an_epoch_is_a_pass_and_steps_cut_the_last_one() -> None:
    found = schedule(epochs=3, batch_size=4)
    assert (found.steps, found.per_epoch, found.epochs) == (9, 3, 3)
    assert [found.of_epoch(epoch) for epoch in (1, 2, 3)] == [range(3), range(3, 6), range(6, 9)]
    found = schedule(steps=4, batch_size=4)
    assert (found.steps, found.epochs, found.of_epoch(2)) == (4, 2, range(3, 4))
    found = schedule(balanced=True, epochs=2, batch_size=2)  # as many of each group
    assert (found.per_epoch, found.steps) == (3, 6)


def test_steps_per_epoch_say_what_an_epoch_is_and_need_the_number_of_all_steps() -> None:
    found = schedule(steps=5000, steps_per_epoch=300, batch_size=4)
    assert (found.steps, found.per_epoch, found.epochs) == (5000, 300, 17)
    assert (found.of_epoch(1), found.of_epoch(17)) == (range(300), range(4800, 5000))
    assert schedule(steps=3, steps_per_epoch=300).of_epoch(1) == range(3)
    for epochs in ({"epochs": 2}, {}):
        with pytest.raises(InvalidConfig, match="steps_per_epoch needs steps"):
            schedule(steps_per_epoch=3, **epochs)
