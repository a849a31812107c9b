"""The GPUs of this machine, as torch sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sweeps.doctor.base import Asked, Check, Finding, ok, warning, wrong
from sweeps.resources import visible_gpus

if TYPE_CHECKING:
    import torch

_GIB = 2**30
_LITTLE = 2 * _GIB


def _gpus(_: Asked) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield from _cuda(index)
    elif torch.backends.mps.is_available():
        yield ok(f"mps, torch {torch.__version__}")
    elif visible_gpus({}):
        built = (
            f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        )
        yield wrong(
            f"nvidia-smi lists {len(visible_gpus({}))} GPUs, but torch {torch.__version__}, "
            f"{built}, sees none",
            "install torch's build for the driver (nvidia-smi shows its CUDA version), and look at "
            "CUDA_VISIBLE_DEVICES",
        )
    else:
        yield ok(f"no GPU; torch {torch.__version__} trains on the CPU")


def _cuda(index: int) -> Iterator[Finding]:
    """One GPU: named, tried, and whether it has room."""
    import torch

    found = torch.cuda.get_device_properties(index)
    capability = f"{found.major}.{found.minor}"
    name = f"cuda:{index} {found.name}"
    compiled = _compiled(found.major, found.minor, torch.cuda.get_arch_list())
    if not compiled:
        yield wrong(
            f"{name}: torch {torch.__version__} is not compiled for capability {capability}"
        )
        return
    try:
        free, total = torch.cuda.mem_get_info(index)
        _try(torch.device("cuda", index))
    except RuntimeError as error:  # CUDA's errors; out of memory is one of them
        yield wrong(f"{name}: {str(error).splitlines()[0]}")
        return
    told = (
        f"{name}, capability {capability}, CUDA {torch.version.cuda}, "
        f"{'bf16' if found.major >= 8 else 'no bf16'}, "
        f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    )
    yield ok(told) if free >= _LITTLE else warning(told)


def _compiled(major: int, minor: int, built: list[str]) -> bool:
    """Whether code for `sm_XY`, or what a driver makes code of (`compute_XY`), fits the GPU."""
    for name in built:
        kind, _, number = name.partition("_")
        digits = number.rstrip("af")
        if not digits.isdigit():
            continue
        there = (int(digits[:-1]), int(digits[-1]))
        if kind == "compute" and there <= (major, minor):
            return True
        if kind == "sm" and there[0] == major and there[1] <= minor:
            return True
    return False


def _try(device: torch.device) -> None:
    import torch

    one = torch.ones(64, 64, device=device)
    if float((one @ one)[0, 0]) != 64:
        raise RuntimeError("a product of matrices is wrong")


CHECKS = (
    Check(
        "gpu.devices",
        "each GPU: seen by torch, compiled for, computing, bf16, free memory",
        "see nvidia-smi for what else holds the GPU, and for its driver; install a torch that "
        "supports it",
        _gpus,
        seconds=60.0,
    ),
)
