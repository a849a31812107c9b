"""Whether a merge can be made of what an algorithm trains is asked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from carft_sweep.carft_core.algorithms import Algorithm
from carft_sweep.carft_core.merges import MERGES, Merge, MergePoint, State
from tests.sweeps.conftest import Carft, ToySweep


class Picky(Merge):
    """Made of fine-tuning only, and of CAR-FT where its context is held lightly."""

    name: ClassVar[str] = "picky"
    summary: ClassVar[str] = "Refuses what holds its context"
    allowed: float = 0.0

    def points(self) -> Sequence[MergePoint]:
        return [MergePoint("picky", 0, {})]

    def state(self, point: MergePoint, zero_shot: State, tuned: State) -> State:
        del point, zero_shot
        return tuned

    def refuses(self, algorithm: Algorithm) -> str | None:
        if algorithm.name == "zero_shot":
            return "nobody is to ask that"
        held = getattr(algorithm, "kl_weight", 0.0)
        return f"its context is held at {held:g}" if held > self.allowed else None


TRIAL: Mapping[str, Any] = {
    "algorithm": {"name": "car_ft"},
    "merges": [{"name": "wise_ft", "alphas": [0.5]}, {"name": "picky"}],
    "device": "cpu",
}
REFUSAL = "picky cannot be made of car_ft: its context is held at"


@pytest.fixture(autouse=True)
def picky(registries: None) -> None:
    """Registered for the test."""
    del registries
    MERGES.register(Picky)


def test_a_merge_that_an_algorithm_is_not_fit_for_is_a_mistake_of_the_file(
    toy_cli: ToySweep, carft: Carft
) -> None:
    for command in ("check", "run"):
        text = carft(command, toy_cli.file(trial=TRIAL), code=2).err
        assert f"toy.yaml:1: merges[1]: {REFUSAL} 0.1" in text
    assert not toy_cli.trained()


def test_the_trial_of_a_grid_or_the_baseline_that_is_refused_is_named(
    toy_cli: ToySweep, carft: Carft
) -> None:
    lax = {**TRIAL, "merges": [{"name": "picky", "allowed": 0.2}]}
    text = carft("check", toy_cli.file(trial=lax), code=2).err
    assert "parameters.algorithm.kl_weight" in text
    assert f"{REFUSAL} 0.3" in text
    changes: dict[str, Any] = {
        "trial": {**TRIAL, "algorithm": {"name": "fine_tune"}},
        "parameters": {"optim.lr": {"values": [0.001]}},
    }
    file = toy_cli.file(**changes, baselines=["zero_shot", "car_ft"])
    assert f"baselines[1]: {REFUSAL} 1" in carft("check", file, code=2).err
    carft("check", toy_cli.file(**changes, baselines=["zero_shot"]))
