"""What a sweep is said to take of a GPU that need not be there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.files import format_size
from carft_sweep.carft_core.training.memory import run_cost
from carft_sweep.sweeps.engines.resources import RunRequirements
from carft_sweep.sweeps.plan import gpu_cost
from carft_sweep.sweeps.plan.estimate import RemainingWork
from carft_sweep.sweeps.plan.gpu_cost import GPUS, UTILISATION, GpuTime, hardware_with, memory_lines
from tests import domain_bed_tree

ToyTrial = Callable[[str], TrialConfig]


@pytest.fixture
def toy_trial(tiny_clip_files: Path, cache: Path) -> ToyTrial:
    """A run of the development set on a GPU, by its algorithm."""
    del cache

    def trial(algorithm: str) -> TrialConfig:
        data = {"model": {"name": str(tiny_clip_files)}, "data": {"family": "icon_shift_dev"}}
        training = {"algorithm": algorithm, "precision": "fp32", "device": "cuda"}
        return trial_config({**data, **training, "optim": {"batch_size": 64}}).for_seed(0)

    return trial


def spent(*work: RemainingWork, gpu: str = "H100", gpus: int = 1) -> GpuTime:
    """The time that work takes, which can be told."""
    time = gpu_cost.time_on(gpu, work, cpus=8, gpus=gpus)
    assert time is not None
    return time


def test_a_balanced_step_takes_a_batch_of_each_domain(
    tmp_path: Path, tiny_clip_files: Path, cache: Path
) -> None:
    del cache
    root = domain_bed_tree.make(tmp_path, "pacs", per_domain=20)

    def time(batch_size: int, *, balanced: bool) -> GpuTime:
        place = {"family": "pacs", "root": str(root), "test_domain": "sketch"}
        model = {"model": {"name": str(tiny_clip_files)}, "algorithm": "fine_tune"}
        data = {"data": {**place, "balanced": balanced}, "precision": "fp32"}
        fields = {**model, **data, "optim": {"batch_size": batch_size}}
        return spent(RemainingWork(trial_config(fields), 10, 1, 1))

    assert time(4, balanced=True) == time(12, balanced=False)


def test_a_probe_takes_a_pass_over_train_and_its_solution(toy_trial: ToyTrial) -> None:
    probe, tuned = (
        RemainingWork(toy_trial(algorithm), 1, 1, 1) for algorithm in ("linear_probe", "lp_ft")
    )
    cost, images = run_cost(probe.config), len(open_data(probe.config.data).train)
    assert cost is not None
    untrained, time = spent(replace(probe, steps=0)), spent(probe)
    fp32, fp64 = GPUS["H100"].fp32, GPUS["H100"].fp64
    own = (cost.image * images / fp32 + gpu_cost.LOOKS * cost.objective / fp64) / UTILISATION
    assert time.computing - untrained.computing == pytest.approx(own, rel=1e-6)
    assert spent(probe, gpu="RTX-4090").computing > time.computing  # hardly any float64
    assert spent(tuned).computing > time.computing
    assert list(memory_lines([probe], 10**12, 1)) == [f"linear_probe: {format_size(cost.peak)}"]
    (line,) = memory_lines([tuned], cost.solving - 1, 1)
    assert line.startswith("! lp_ft: ")
    assert "to solve its probe" in line


def test_several_gpus_of_a_run_divide_its_images(toy_trial: ToyTrial) -> None:
    work = RemainingWork(toy_trial("fine_tune"), 10, 1, 2)
    single, pair = (spent(work, gpus=gpus) for gpus in (1, 2))
    assert pair.computing == pytest.approx(single.computing / 2, rel=0.01)
    assert pair.decoding == single.decoding
    need = RunRequirements(cpus=8, gpus=2)
    assert hardware_with("H100", need).gpus == 2
    whole, half = (hardware_with("H100", replace(need, gpus=gpus)).gpu_memory for gpus in (1, 0.5))
    assert whole == 2 * (half or 0) == pytest.approx(80e9 / 2**20)


def test_the_other_tasks_that_a_run_is_measured_on_count(toy_trial: ToyTrial) -> None:
    plain = toy_trial("fine_tune")
    fields = {**plain.as_dict(), "eval": {"retention": ["icon_shift"]}}
    cost, other = run_cost(plain), open_data(DataConfig(family="icon_shift")).id_test
    assert cost is not None
    configs = (plain, trial_config(fields))
    less, more = (spent(RemainingWork(config, 10, 1, 3)) for config in configs)
    operations = 3 * len(other) * cost.image
    added = operations / (UTILISATION * GPUS["H100"].fp32)
    assert more.computing - less.computing == pytest.approx(added, rel=1e-6)
