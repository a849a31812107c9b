"""Where a run computes, and in which precision."""

from __future__ import annotations

import contextlib
import resource
import sys
from typing import Literal

import torch

from carft_core.errors import RequestError

Precision = Literal["fp32", "bf16"]


def resolve_device(asked: str) -> torch.device:
    """`auto` is CUDA, then MPS, then CPU. Raises RequestError for a device that is not there."""
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(asked)
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise RequestError(f"device: {asked} is not there; torch sees {count} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RequestError("device: mps is not there")
    return device


def resolve_precision(asked: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """`auto` is bf16 on a CUDA device that computes it, else fp32. fp32 means without TF32."""
    if asked != "auto":
        return asked
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """The context in which forward passes run."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def peak_memory_mb(device: torch.device) -> float:
    """The most that was held so far: of the device on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
