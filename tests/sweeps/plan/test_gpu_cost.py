"""What a sweep is said to take of a GPU that need not be there."""

from __future__ import annotations

from pathlib import Path

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.sweeps.plan.estimate import RemainingWork
from carft_sweep.sweeps.plan.gpu_cost import GpuTime, time_on
from tests import domain_bed_tree


def test_a_balanced_step_takes_a_batch_of_each_domain(
    tmp_path: Path, tiny_clip_files: Path, cache: Path
) -> None:
    del cache
    root = domain_bed_tree.make(tmp_path, "pacs", per_domain=20)

    def time(batch_size: int, *, balanced: bool) -> GpuTime | None:
        place = {"family": "pacs", "root": str(root), "test_domain": "sketch"}
        fields = {
            "model": {"name": str(tiny_clip_files)},
            "data": {**place, "balanced": balanced},
            "algorithm": "fine_tune",
            "optim": {"batch_size": batch_size},
            "precision": "fp32",
        }
        return time_on("H100", [RemainingWork(trial_config(fields), 10, 1, 1)], cpus=8)

    assert time(4, balanced=True) == time(12, balanced=False) is not None
