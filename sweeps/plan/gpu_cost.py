"""The GPU memory and hours that a sweep takes, computed without the GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.errors import RequestError, unknown
from carft_sweep.carft_core.files import format_size
from carft_sweep.carft_core.training.memory import run_cost
from carft_sweep.carft_core.training.optim import images_of_step
from carft_sweep.carft_core.training.setup import other_data
from carft_sweep.sweeps.engines.resources import Hardware, RunRequirements
from carft_sweep.sweeps.plan.estimate import RemainingWork

UTILISATION = 0.35
"""Fraction of its peak speed that a GPU is assumed to reach."""
DECODED = 200
"""Photographs that a CPU core is assumed to decode in a second."""
LOOKS = 200
"""Evaluations of its objective that solving a linear probe is assumed to take. 19 to 104 were
counted at 2,000 to 50,000 features of 10 to 100 classes, with C from 1 to 1,000."""


@dataclass(frozen=True)
class GpuModel:
    """A GPU by its data sheet."""

    memory: float
    """GB."""
    fp32: float
    """Operations a second."""
    bf16: float | None
    """Operations a second without sparsity; None for a GPU that has no bf16."""
    fp64: float
    """Operations a second in matrix products."""


GPUS = {
    "H200": GpuModel(141, 67e12, 989e12, 67e12),
    "H100": GpuModel(80, 67e12, 989e12, 67e12),
    "A100": GpuModel(80, 19.5e12, 312e12, 19.5e12),
    "A100-40GB": GpuModel(40, 19.5e12, 312e12, 19.5e12),
    "L40S": GpuModel(48, 91.6e12, 362e12, 1.4e12),
    "RTX-4090": GpuModel(24, 82.6e12, 165e12, 1.3e12),
    "RTX-3090": GpuModel(24, 35.6e12, 71e12, 0.56e12),
    "V100": GpuModel(32, 15.7e12, None, 7.8e12),
    "T4": GpuModel(16, 8.1e12, None, 0.25e12),
}
"""By the name of `check --gpu`. Source: NVIDIA's data sheets."""


def hardware_with(name: str, need: RunRequirements) -> Hardware:
    """Return the hardware of a run that needs `need`, with GPUs of the model `name`. Raises
    RequestError for an unknown name."""
    if name not in GPUS:
        raise RequestError(unknown("GPU", name, GPUS))
    gpu = GPUS[name]
    return Hardware(
        max(1, int(need.cpus)),
        math.ceil(need.gpus),
        bf16=gpu.bf16 is not None,
        why_fp32="" if gpu.bf16 else f"a {name} computes no bf16",
        gpu_memory=gpu.memory * 1e9 / 2**20 * min(1.0, need.gpus),
    )


def memory_lines(work: Sequence[RemainingWork], room: int, gpus: int) -> Iterator[str]:
    """Yield a line for each kind of run: the memory that it takes on each of its `gpus` GPUs; with
    `!` and a remedy if that is more than `room` bytes."""
    on_gpu = (item.config for item in work if item.steps and item.config.device.startswith("cuda"))
    rows = (_memory_row(config, room, gpus) for config in on_gpu)
    yield from dict.fromkeys(filter(None, rows))


def _memory_row(config: TrialConfig, room: int, gpus: int) -> str:
    """Return the line of one kind of run; "" for a user's algorithm that solves without steps."""
    optim, name = config.optim, config.algorithm.name
    cost = run_cost(config, gpus)
    batch = f"optim.batch_size {optim.batch_size}"
    if optim.micro_batch is not None:
        batch += f", micro_batch {optim.micro_batch}"
    if cost is not None and cost.solving > room:
        return f"! {name}: {format_size(cost.solving)} to solve its probe, more than the GPU has"
    if config.algorithm.solves:
        return "" if cost is None else f"{name}: {format_size(cost.peak)}"
    if cost is None:
        return f"{name}, {batch}: unknown, since its loss depends on the numbers in a batch"
    if cost.training > room:
        remedy = "a smaller optim.micro_batch, or optim.grad_checkpointing: true"
        return f"! {name}, {batch}: {format_size(cost.training)}; {remedy}"
    if cost.evaluation > room:
        return f"! {name}: {format_size(cost.evaluation)} to evaluate; a smaller eval.batch_size"
    return f"{name}, {batch}: {format_size(cost.peak)}"


class GpuTime(NamedTuple):
    """The seconds that the rest of a sweep takes: the GPUs and the CPU cores work side by side."""

    computing: float
    """Of a run's GPUs, at UTILISATION of their peak."""
    decoding: float
    """Of a run's CPU cores, which decode images."""


def time_on(name: str, work: Sequence[RemainingWork], cpus: int, gpus: int = 1) -> GpuTime | None:
    """Return how long the remaining work takes, run after run, each on `gpus` GPUs of the model
    `name` with `cpus` cores; None where a step's cost cannot be computed."""
    gpu = GPUS[name]
    computing, decoded = 0.0, 0
    for item in work:
        config, data = item.config, open_data(item.config.data)
        cost = run_cost(config, gpus)
        if cost is None and config.algorithm.solves:  # which takes hardly any time
            continue
        if cost is None:
            return None
        validated = (0 if data.val is None else len(data.val)) * item.epochs
        others = other_data(config.data, config.eval).values()
        splits = [*data.measured().values(), *(other.id_test for other in others)]
        measured = sum(map(len, splits))
        encoded = len(data.train) if cost.objective and item.steps else 0
        predicted = validated + measured * item.models + encoded
        operations = cost.step * item.steps + cost.image * predicted / gpus
        peak = (gpu.bf16 if config.precision == "bf16" else None) or gpu.fp32
        solved = LOOKS * cost.objective / gpu.fp64 if encoded else 0.0
        computing += (operations / peak + solved) / UTILISATION
        images = images_of_step(config.optim, data.train, balanced=config.data.balanced)
        trained = 0 if config.algorithm.solves else images * item.steps
        if data.train.source.decodes:
            decoded += trained + validated + measured + encoded
    return GpuTime(computing, decoded / (DECODED * cpus))
