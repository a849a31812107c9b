"""What a sweep takes of a GPU that need not be there: memory and hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.errors import RequestError, unknown
from carft_sweep.carft_core.files import format_size
from carft_sweep.carft_core.training.memory import run_cost
from carft_sweep.carft_core.training.optim import images_of_step
from carft_sweep.sweeps.engines.resources import Hardware
from carft_sweep.sweeps.plan.estimate import RemainingWork

UTILISATION = 0.35
"""Of its peak that a GPU is taken to reach."""
DECODED = 200
"""Photographs that a core is taken to decode in a second."""


@dataclass(frozen=True)
class GpuModel:
    """A GPU by its data sheet."""

    memory: float
    """GB."""
    fp32: float
    """Operations a second."""
    bf16: float | None
    """Likewise, without sparsity; None where it computes none itself."""


GPUS = {
    "H200": GpuModel(141, 67e12, 989e12),
    "H100": GpuModel(80, 67e12, 989e12),
    "A100": GpuModel(80, 19.5e12, 312e12),
    "A100-40GB": GpuModel(40, 19.5e12, 312e12),
    "L40S": GpuModel(48, 91.6e12, 362e12),
    "RTX-4090": GpuModel(24, 82.6e12, 165e12),
    "RTX-3090": GpuModel(24, 35.6e12, 71e12),
    "V100": GpuModel(32, 15.7e12, None),
    "T4": GpuModel(16, 8.1e12, None),
}
"""By the name of `check --gpu`. Source: NVIDIA's data sheets."""


def hardware_with(name: str, hardware: Hardware) -> Hardware:
    """Return a run's hardware with a GPU of this name. Raises RequestError for an unknown name."""
    if name not in GPUS:
        raise RequestError(unknown("GPU", name, GPUS))
    gpu = GPUS[name]
    return replace(
        hardware,
        gpus=1,
        mps=False,
        bf16=gpu.bf16 is not None,
        why_fp32="" if gpu.bf16 else f"a {name} computes no bf16",
        gpu_memory=gpu.memory * 1e9 / 2**20,
    )


def memory_lines(work: Sequence[RemainingWork], room: int) -> Iterator[str]:
    """Yield for every kind of run on a GPU how much memory it takes, and whether that fits."""
    on_gpu = (item.config for item in work if item.steps and item.config.device.startswith("cuda"))
    yield from dict.fromkeys(
        _memory_row(config, room) for config in on_gpu if not config.algorithm.solves
    )


def _memory_row(config: TrialConfig, room: int) -> str:
    optim, name = config.optim, config.algorithm.name
    cost = run_cost(config)
    batch = f"optim.batch_size {optim.batch_size}"
    if optim.micro_batch is not None:
        batch += f", micro_batch {optim.micro_batch}"
    if cost is None:
        return f"{name}, {batch}: unknown, since its loss depends on the numbers in a batch"
    if cost.training > room:
        remedy = "a smaller optim.micro_batch, or optim.grad_checkpointing: true"
        return f"! {name}, {batch}: {format_size(cost.training)}; {remedy}"
    if cost.evaluation > room:
        return f"! {name}: {format_size(cost.evaluation)} to evaluate; a smaller eval.batch_size"
    return f"{name}, {batch}: {format_size(cost.peak)}"


class GpuTime(NamedTuple):
    """The GPU seconds that are left of a sweep."""

    computing: float
    """Of the GPU, at UTILISATION of its peak."""
    decoding: float
    """Of the cores beside it, which decode meanwhile."""


def time_on(name: str, work: Sequence[RemainingWork], cpus: int) -> GpuTime | None:
    """Return how long the remaining work takes on a GPU of this name beside this number of cores;
    None where a step's cost cannot be computed."""
    gpu = GPUS[name]
    computing, decoded = 0.0, 0
    for item in work:
        config, data = item.config, open_data(item.config.data)
        cost = run_cost(config)
        if cost is None and config.algorithm.solves:  # hardly any of it
            continue
        if cost is None:
            return None
        validated = (0 if data.val is None else len(data.val)) * item.epochs
        measured = sum(map(len, data.measured().values()))
        operations = cost.step * item.steps + cost.image * (validated + measured * item.models)
        peak = (gpu.bf16 if config.precision == "bf16" else None) or gpu.fp32
        computing += operations / (UTILISATION * peak)
        images = images_of_step(config.optim, data.train, balanced=config.data.balanced)
        if data.train.source.decodes:
            decoded += images * item.steps + validated + measured
    return GpuTime(computing, decoded / (DECODED * cpus))
