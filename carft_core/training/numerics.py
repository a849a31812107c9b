"""Where a run computes, in which precision, and how much memory that takes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import resource
import sys
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from carft_sweep.carft_core.errors import RequestError

Precision = Literal["fp32", "tf32", "bf16"]
MIB = 2**20
CONTEXT_AT_MOST_MB = 1024.0
"""A CUDA context with the kernels of PyTorch, cuBLAS and cuDNN takes less; what is used of a GPU
beyond that belongs to another process."""


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is CUDA, then MPS, then CPU. Raises RequestError for a
    device that this machine lacks."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise RequestError(f"device: {name} is not there; torch sees {count} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RequestError("device: mps is not there")
    return device


def resolve_precision(name: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """Return the precision of a name; `auto` is bf16 on a CUDA device whose hardware computes it,
    else fp32. A T4 or a V100 only emulates bf16, slower than fp32. Raises RequestError for tf32
    elsewhere than on CUDA."""
    if name == "tf32" and device.type != "cuda":
        raise RequestError(f"precision: tf32 is for CUDA devices, not {device.type}; use fp32")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    # As torch.cuda.is_bf16_supported(including_emulation=False) says of the current device.
    is_native = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if is_native else "fp32"


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """Return the context of forward passes: autocast to bf16 with that precision, else none."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextlib.contextmanager
def arithmetic(
    device: torch.device,
    precision: Precision,
    *,
    deterministic: bool = False,
    convolutional: bool = False,
) -> Iterator[None]:
    """Within the context, make PyTorch compute as one run's config says.

    Products and convolutions in fp32 are rounded to TF32 with the precision tf32 and no other
    (cuDNN's default is otherwise). `deterministic` allows only kernels that give the same bits each
    time; without it cuDNN tries its kernels for each new shape of a `convolutional` tower on CUDA
    and keeps the fastest. A CUDA device is the current one inside, so that nothing lands on GPU 0
    by default.

    These flags belong to the process: a generator must not hold them over a `yield` to its caller.
    Raises RequestError for an operation that has no deterministic kernel.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    flags = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    # It chooses among kernels by the clock.
    cudnn.benchmark = convolutional and device.type == "cuda" and not deterministic
    if deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        with torch.cuda.device(device if device.type == "cuda" else -1):
            yield
    except RuntimeError as error:
        if deterministic and "deterministic" in str(error):
            reason = " ".join(str(error).split())[:300]
            raise RequestError(f"deterministic: true cannot be kept here: {reason}") from error
        raise
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = flags
        torch.use_deterministic_algorithms(strict, warn_only=warns)


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, not waiting for it.

    On CUDA it is copied from pinned memory on a stream of its own. Python is ahead of the GPU by a
    step, so a batch is copied while the one before is computed; on the one stream it would wait for
    its turn.
    """
    if device.type != "cuda":
        return tensor.to(device, non_blocking=True)
    computing, copying = torch.cuda.current_stream(device), _copying(device)
    source = tensor.pin_memory() if tensor.device.type == "cpu" else tensor
    with torch.cuda.stream(copying):
        copied = source.to(device, non_blocking=True)
    computing.wait_stream(copying)
    # Its memory is the copying stream's, which would use it again while it is computed with.
    copied.record_stream(computing)
    return copied


def one_attention_path() -> None:
    """Make attention be computed the same way with and without gradients, for the rest of the
    process.

    Without a gradient PyTorch takes a fused path that rounds differently; the teacher, the student
    and the evaluation of equal weights would differ, and CAR-FT's KL would not be 0 at step 0.
    """
    torch.backends.mha.set_fastpath_enabled(False)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the count of `peak_memory_mb`, where the device permits: on CUDA."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory, in MiB, that this process has held.

    On CUDA, since `reset_peak_memory`: the memory that PyTorch reserved, and the context, taken as
    all other used memory of the device, at most `CONTEXT_AT_MOST_MB`. Elsewhere: the process's
    memory since its start.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        beside = (total - free - torch.cuda.memory_reserved(device)) / MIB
        context = min(max(beside, 0.0), CONTEXT_AT_MOST_MB)
        return torch.cuda.max_memory_reserved(device) / MIB + context
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def seeded(seed: int, epoch: int, device: torch.device, rank: int = 0) -> Iterator[None]:
    """Within the context, set global random state (dropout, stochastic depth) as a function of
    (seed, epoch, rank) alone. So a resumed epoch draws the same numbers, and the caller's random
    state is not touched."""
    devices = [device] if device.type == "cuda" else []
    name = f"{seed}/{epoch}/{rank}" if rank else f"{seed}/{epoch}"
    digest = hashlib.sha256(name.encode()).digest()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield
