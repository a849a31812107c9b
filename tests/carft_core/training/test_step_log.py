"""The points within an epoch: how many, their numbers, and what a resume and a crash leave."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.training import step_log
from carft_sweep.carft_core.training.loop import train
from carft_sweep.carft_core.training.step_log import EVERY, StepLog, read_points
from tests.carft_core.ranks import on_ranks
from tests.carft_core.stand_ins import failing
from tests.carft_core.trained import Config, killed_after, same, weights

CPU = torch.device("cpu")


class Training:
    """A loop on a clock that the test moves: a step has loss `step`, and two images."""

    def __init__(self, folder: Path, device: torch.device = CPU, *, writes: bool = True) -> None:
        self.now, self.step = 0.0, 0
        self.log = StepLog(folder, device, writes=writes, clock=lambda: self.now)
        self.log.begin_epoch()

    def steps(self, count: int, seconds: float, loss: float | None = None) -> None:
        for _ in range(count):
            self.step += 1
            self.now += seconds
            value = torch.tensor(float(self.step) if loss is None else loss)
            self.log.add(self.step, value, rate=self.step / 100, images=2)

    def validate(self, seconds: float) -> None:
        self.now += seconds
        self.log.begin_epoch()


def series(folder: Path, name: str) -> dict[int, float]:
    return {point["step"]: point["metrics"][name] for point in read_points(folder)}


def test_points_are_ten_seconds_of_training_apart_and_a_short_run_has_none(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.steps(2, 4.0)
    assert not list(tmp_path.iterdir())
    training.validate(60.0)
    training.steps(1, 2.0)
    training.steps(2, 8.0)
    training.steps(2, 25.0)
    losses = {3: (1 + 2 + 3) / 3, 5: (4 + 5) / 2, 6: 6.0, 7: 7.0}
    assert series(tmp_path, "train/loss_step") == losses
    assert series(tmp_path, "train/lr_step") == {3: 0.03, 5: 0.05, 6: 0.06, 7: 0.07}
    speeds = {3: 6 / 10, 5: 4 / 16, 6: 2 / 25, 7: 2 / 25}
    assert series(tmp_path, "system/images_per_s_step") == speeds


def test_steps_that_are_trained_again_have_the_points_of_the_first_time(tmp_path: Path) -> None:
    Training(tmp_path).steps(5, 5.0)
    before = (tmp_path / "steps.jsonl").read_bytes()
    again = Training(tmp_path)
    again.steps(4, 60.0)
    assert (tmp_path / "steps.jsonl").read_bytes() == before
    again.steps(3, 6.0)
    assert series(tmp_path, "train/loss_step") == {2: 1.5, 4: 3.5, 6: 5.5}
    assert series(tmp_path, "system/images_per_s_step")[6] == 4 / 12


def test_a_line_that_a_crash_or_a_disk_damaged_costs_that_line(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    Training(tmp_path).steps(4, 10.0)
    lines = file.read_bytes().splitlines(keepends=True)
    unquoted = lines[1].replace(b"1", b'"', 1)
    for damaged in (b'{"step": 2}\n', b"\0" * 20 + b"\n", b'{"step": NaN}\n', unquoted):
        file.write_bytes(lines[0] + damaged + lines[2] + lines[3][:-20])
        assert [*series(tmp_path, "train/lr_step")] == [1, 3]
        Training(tmp_path).steps(5, 10.0)
        assert [*series(tmp_path, "train/lr_step")] == [1, 3, 4, 5]
    assert [point["step"] for point in read_points(tmp_path, behind=3)] == [4, 5]


def test_what_has_no_number_or_cannot_be_written_costs_a_point_and_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        training.steps(1, 10.0)
    assert "the point of step 1 is not kept: " in caplog.text
    (tmp_path / "gone").mkdir()
    training.steps(1, 10.0, loss=math.nan)
    training.steps(1, 10.0, loss=math.inf)
    training.steps(1, 10.0)
    assert series(tmp_path / "gone", "train/loss_step") == {4: 4.0}


def test_the_device_is_waited_for_at_points_alone(tmp_path: Path) -> None:
    reads: list[int] = []

    class Loss(torch.Tensor):
        def __float__(self) -> float:
            reads.append(1)
            return 1.0

    training = Training(tmp_path)
    for step in range(1, 21):
        training.now += 1.0
        training.log.add(step, torch.tensor(1.0).as_subclass(Loss), rate=0.1, images=2)
    assert len(reads) == len(read_points(tmp_path)) == 2


def test_samples_have_the_names_and_units_of_mlflows_monitors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, memory = SimpleNamespace(gpu=40), SimpleNamespace(used=3 * 10**9, total=8 * 10**9)
    nvml: Any = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetMemoryInfo=lambda _: memory,
        nvmlDeviceGetUtilizationRates=lambda _: rates,
        nvmlDeviceGetPowerUsage=lambda _: 1,
        nvmlDeviceGetEnforcedPowerLimit=lambda _: 2,
    )
    monkeypatch.setattr("mlflow.system_metrics.metrics.gpu_monitor.pynvml", nvml, raising=False)
    cpu, gpu = CPUMonitor(), GPUMonitor.__new__(GPUMonitor)  # it would ask for a GPU
    gpu._metrics, gpu.gpu_handles = defaultdict(list), [0]
    for monitor in (cpu, gpu):
        monitor.collect_metrics()
    theirs = cpu.aggregate_metrics() | gpu.aggregate_metrics()

    free = memory.total - memory.used
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, memory.total))
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: rates.gpu)
    training = Training(tmp_path, torch.device("cuda"))
    training.steps(1, EVERY)
    (point,) = read_points(tmp_path)
    system = {name: value for name, value in point["metrics"].items() if not name.endswith("_step")}
    ours = {name.removeprefix("system/"): value for name, value in system.items()}
    assert ours.keys() == theirs.keys() - {name for name in theirs if "power" in name}
    assert {name: value for name, value in ours.items() if "gpu" in name}.items() <= theirs.items()
    share, megabytes = "system_memory_usage_percentage", "system_memory_usage_megabytes"
    sizes = [of[megabytes] / of[share] for of in (ours, theirs)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert 0 <= ours["cpu_utilization_percentage"] <= 100

    unknown = ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
    monkeypatch.setattr(torch.cuda, "utilization", failing(unknown))
    training.steps(1, EVERY)
    known = [name for name in read_points(tmp_path)[1]["metrics"] if "gpu" in name]
    assert known == ["system/gpu_0_memory_usage_megabytes", "system/gpu_0_memory_usage_percentage"]


def test_points_change_no_number_and_their_mean_is_that_of_the_epoch(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config({"optim.batch_size": 7})
    train(config, 0, workdir=tmp_path / "without")
    assert not (tmp_path / "without" / "steps.jsonl").exists()
    monkeypatch.setattr(step_log, "EVERY", 0.0)
    train(config, 0, workdir=tmp_path / "with")
    plain, logged = (RunFolder(tmp_path / name) for name in ("without", "with"))
    assert same(weights(plain.path), weights(logged.path))
    losses = series(logged.path, "train/loss_step")
    history = logged.history()
    assert [*losses] == list(range(1, history[-1]["step"] + 1))
    for before, epoch in itertools.pairwise(history):
        assert epoch["metrics"]["train/lr"] == series(logged.path, "train/lr_step")[epoch["step"]]
        own = [losses[step] for step in range(before["step"] + 1, epoch["step"] + 1)]
        images = [7] * (len(own) - 1) + [18 - 7 * (len(own) - 1)]
        mean = sum(loss * count for loss, count in zip(own, images, strict=True)) / sum(images)
        assert epoch["metrics"]["train/loss"] == pytest.approx(mean, rel=1e-6)


def test_a_run_that_resumes_behind_its_points_never_has_two_of_one_step(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_log, "EVERY", 0.0)
    config = toy_config({"optim.epochs": 3})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, 0, workdir=whole)
    killed_after(2, config, killed)
    before = (killed / "steps.jsonl").read_text()
    train(config, 0, workdir=killed)
    after = (killed / "steps.jsonl").read_text()
    assert after.startswith(before)
    for name in ("train/loss_step", "train/lr_step"):
        assert series(killed, name) == series(whole, name)
    steps = [json.loads(line)["step"] for line in after.splitlines()]
    assert steps == sorted(set(steps))


def test_one_of_the_ranks_of_a_run_writes_its_points(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_log, "EVERY", 0.0)
    config = toy_config({"algorithm": "fine_tune", "optim.batch_size": 7})
    train(config, 0, workdir=tmp_path / "one")
    on_ranks(2, lambda: train(config, 0, workdir=tmp_path / "two") and None)
    alone, together = (series(tmp_path / name, "train/loss_step") for name in ("one", "two"))
    assert [*alone] == [*together]
    assert together == pytest.approx(alone, rel=2e-4, abs=2e-5)
    assert len((tmp_path / "two" / "steps.jsonl").read_text().splitlines()) == len(alone)
