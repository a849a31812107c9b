"""One run on two processes: the sums, what is refused, and runs equal to those of one process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from carft_sweep.carft_core.algorithms.base import Batch, Loss
from carft_sweep.carft_core.algorithms.fine_tune import FineTune
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data.loader import EpochPlan, RankPlan
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.result import Decision, EpochReport
from carft_sweep.carft_core.training.loop import train
from carft_sweep.carft_core.training.ranks import World, current_ranks
from tests.carft_core.ranks import on_ranks
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, numbers, stopped, weights

RELATIVE, ABSOLUTE = 1e-5, 1e-6
"""Tolerances of weights that SGD came to. AdamW makes a whole step of a gradient that is 0 but for
rounding, as that of the biases of an attention's keys is; there what is measured is compared."""


def test_every_row_of_a_batch_is_of_one_rank() -> None:
    plan, worlds = EpochPlan(11, 4, seed=3), [World(rank, 2) for rank in range(2)]
    for step in range(plan.steps):
        rows, passes = plan(step)
        drawn = [RankPlan(plan, world)(step) for world in worlds]
        for rank in range(2):
            assert np.array_equal(drawn[rank].rows, rows[rank::2])
            assert np.array_equal(drawn[rank].passes, passes[rank::2])
        assert sum(world.share(len(rows)) for world in worlds) == 1
    assert [World(rank, 3).share(2) for rank in range(3)] == [0.5, 0.5, 0.0]
    assert list(World(2, 3).shard(np.array([7, 8]))) == [7], "without a row it has the first"


def _exchange() -> dict[str, Any]:
    world = current_ranks()
    common, single, unused = (nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    common.grad = torch.full((2, 2), 1.0 + world.rank).to(memory_format=torch.contiguous_format)
    if world.rank == 1:
        single.grad = torch.eye(2)
    values = world.sum_gradients([common, single, unused], {"loss": torch.tensor(0.25)})
    rows = torch.arange(5.0)[:, None].expand(5, 3)
    state = {"same": torch.ones(3), "other": torch.ones(3) * (1 + world.rank)}
    differing = world.differing(state)
    world.copy(state)
    return {
        "both": common.grad.tolist(),
        "one": None if single.grad is None else single.grad.tolist(),
        "none": unused.grad,
        "loss": float(values["loss"]),
        "rows": world.gather(world.shard(rows), 5)[:, 2].tolist(),
        "single": world.gather(world.shard(rows[:1]), 1).tolist(),
        "agreed": world.agree({"from": world.rank, "text": "ä"}),
        "all": [world.all(True), world.all(world.rank == 0)],
        "differing": differing,
        "copied": state["other"].tolist(),
    }


def test_what_ranks_exchange() -> None:
    expected = {
        "both": [[3.0, 3.0], [3.0, 3.0]],
        "one": [[1.0, 0.0], [0.0, 1.0]],
        "none": None,
        "loss": 0.5,
        "rows": [0.0, 1.0, 2.0, 3.0, 4.0],
        "single": [[0.0, 0.0, 0.0]],
        "agreed": {"from": 0, "text": "ä"},
        "all": [True, False],
        "differing": ["other"],
        "copied": [1.0, 1.0, 1.0],
    }
    assert on_ranks(2, _exchange) == [expected, expected]


def test_a_process_alone_exchanges_nothing() -> None:
    world, parameter = World(), nn.Parameter(torch.zeros(2))
    assert current_ranks() == world
    loss = torch.tensor(0.1, dtype=torch.float64)
    assert world.sum_gradients([parameter], {"loss": loss})["loss"] is loss
    rows = torch.ones(3, 2)
    assert world.gather(rows, 3) is rows
    assert world.agree(rows) is rows
    assert world.share(7) == 1.0
    assert world.differing({"a": rows}) == []


def test_a_device_that_a_rank_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    one_device = {"cuda:0": "cuda:0 is one device", "mps": "mps is one device"}
    for name, message in {**one_device, "cuda": "sees 1 GPUs"}.items():
        refused(message, World(1, 2).device, torch.device(name))
        assert World().device(torch.device(name)) == torch.device(name)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert World(0, 2).device(torch.device("cuda")) == torch.device("cuda", 0)


def recorded(config: TrialConfig, folder: Path, stop_after: int | None = None) -> dict[str, Any]:
    """A run, closed once behind an epoch; what it reported and came to."""
    reports: list[dict[str, float]] = []

    def report(epoch: EpochReport) -> Decision:
        reports.append(numbers(epoch))
        return Decision.STOP if epoch.epoch == stop_after else Decision.CONTINUE

    result = train(config, 0, workdir=folder, report=report)
    if stop_after is not None:
        assert result is None
        stop_after = None
        result = train(config, 0, workdir=folder, report=report)
    assert result is not None
    return {"reports": reports, "metrics": dict(result.metrics), "merges": dict(result.merges)}


SGD = {"optim.name": "sgd", "optim.lr": 0.01}
CASES: dict[str, dict[str, Any]] = {
    "fine_tune": {"algorithm": "fine_tune", "optim.batch_size": 7},
    "fine_tune_sgd": {"algorithm": "fine_tune", "optim.batch_size": 17, **SGD},
    "car_ft": {"optim.batch_size": 17, "optim.micro_batch": 3, "merges": ["wise_ft"]},
    "car_ft_sgd": {"optim.batch_size": 7, "optim.micro_batch": 3, **SGD},
    "lp_ft": {"algorithm": "lp_ft", **SGD},
    "ema": {"algorithm": {"name": "ema", "of": "car_ft"}, "optim.micro_batch": 2},
    "ema_sgd": {"algorithm": {"name": "ema", "of": "car_ft"}, "optim.micro_batch": 2, **SGD},
    "sam": {"algorithm": "fine_tune", "optim.name": "sam"},
    "linear_probe": {"algorithm": "linear_probe"},
    "zero_shot": {"algorithm": "zero_shot"},
}


def check_equal(config: TrialConfig, folder: Path, stop_after: int | None = None) -> None:
    expected = recorded(config, folder / "one", stop_after)
    for result in on_ranks(2, lambda: recorded(config, folder / "two", stop_after)):
        assert len(result["reports"]) == len(expected["reports"])
        for ours, theirs in zip(result["reports"], expected["reports"], strict=True):
            assert ours == pytest.approx(theirs, rel=2e-4, abs=2e-5)
        assert result["metrics"] == pytest.approx(expected["metrics"], rel=2e-3, abs=1e-4)
        assert result["merges"].keys() == expected["merges"].keys()
    if config.algorithm.trains and config.optim.name == "sgd":
        alone, together = (weights(folder / name) for name in ("one", "two"))
        torch.testing.assert_close(together, alone, rtol=RELATIVE, atol=ABSOLUTE)
    places = (folder / "one", folder / "two")
    claims = [RunFolder(place).claimed() for place in places]
    assert claims[0] == claims[1]
    files = [{path.relative_to(place) for path in place.rglob("*")} for place in places]
    assert files[0] == files[1]


def test_two_ranks_come_to_what_one_comes_to(toy_config: Config, tmp_path: Path) -> None:
    check_equal(toy_config({**CASES["car_ft_sgd"], "optim.epochs": 1}), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_come_to_that_in_any_run(toy_config: Config, tmp_path: Path, name: str) -> None:
    check_equal(toy_config(CASES[name]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["car_ft", "ema_sgd", "car_ft_sgd"])
def test_two_ranks_resume_together(toy_config: Config, tmp_path: Path, name: str) -> None:
    check_equal(toy_config({**CASES[name], "optim.epochs": 3}), tmp_path, stop_after=1)


@pytest.mark.slow
def test_what_one_process_began_two_may_end(toy_config: Config, tmp_path: Path) -> None:
    config = toy_config({"optim.epochs": 3})
    expected = recorded(config, tmp_path / "one")

    stopped(config, tmp_path / "two", after=1)
    results = on_ranks(2, lambda: recorded(config, tmp_path / "two"))
    assert results[0]["reports"][-1] == pytest.approx(expected["reports"][-1], rel=2e-4, abs=2e-5)


def failure(config: TrialConfig, folder: Path) -> str:
    try:
        train(config, 0, workdir=folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def failure_on_ranks(config: TrialConfig, folder: Path) -> str:
    (message,) = {*on_ranks(2, lambda: failure(config, folder))}
    return message


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"algorithm": "flyp"}, "the loss of flyp"),
        ({"algorithm": {"name": "ema", "of": "flyp"}}, "the loss of ema"),
        ({"optim.batch_norm": "train"}, "optim.batch_norm: train"),
        (None, "the dropout or stochastic depth of {}"),  # each rank would draw masks of its own
    ],
)
def test_a_run_whose_images_are_coupled_is_refused_before_anything_is_written(
    toy_config: Config, dropping_clip_files: Path, tmp_path: Path, changes: Any, cause: str
) -> None:
    config = toy_config(changes or {"model": {"name": str(dropping_clip_files)}})
    assert failure_on_ranks(config, tmp_path) == (
        f"RequestError: {cause.format(dropping_clip_files)} couples the images of a batch, "
        "so a run cannot be divided among 2 processes; set resources.gpus: 1"
    )
    assert not (tmp_path / "config.json").exists()


class Remembers(FineTune):
    name: ClassVar[str] = "remembers"

    def build(self, teacher: Teacher) -> nn.Module:
        model = super().build(teacher)
        model.register_buffer("seen", torch.zeros(len(teacher.splits["train"])))
        return model

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        with torch.no_grad():
            model.seen[batch.index] += 1  # type: ignore[index,operator]
        return super().loss(model, batch, teacher)


class Breaks(FineTune):
    name: ClassVar[str] = "breaks"

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        loss, logs = super().loss(model, batch, teacher)
        return torch.where((batch.index == 3).any(), loss * math.nan, loss), logs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Remembers(), "RequestError: remembers changes seen by the images of each"),
        (Breaks(), "NonFinite: train/loss is nan in epoch 1"),
    ],
)
def test_what_fails_on_one_rank_ends_all_alike(
    toy_config: Config, tmp_path: Path, algorithm: FineTune, message: str
) -> None:
    config = toy_config({}).model_copy(update={"algorithm": algorithm})
    assert failure_on_ranks(config, tmp_path).startswith(message)
