"""Where a run computes: what `auto` is, which flags are set and put back, how memory is counted."""

from __future__ import annotations

import contextlib
from unittest.mock import MagicMock

import pytest
import torch

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.training import numerics as device_module
from carft_sweep.carft_core.training.numerics import (
    MIB,
    arithmetic,
    autocast,
    peak_memory_mb,
    resolve_device,
    resolve_precision,
    to_device,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
T4, V100, A100, H100 = (7, 5), (7, 0), (8, 0), (9, 0)


def flags() -> tuple[bool, bool, bool, bool]:
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )


def test_auto_is_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the device of the run, and not by what PyTorch says on a T4, where bf16 is emulated."""
    gpus = {0: T4, 1: V100, 2: A100, 3: H100}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpus[device.index])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    precisions = [resolve_precision("auto", torch.device("cuda", number)) for number in gpus]
    assert precisions == ["fp32", "fp32", "bf16", "bf16"]


def test_what_is_named_is_taken_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("tf32", CUDA) == "tf32"
    with pytest.raises(RequestError, match="precision: tf32 is for CUDA devices, not cpu"):
        resolve_precision("tf32", CPU)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0").index == 0
    with pytest.raises(RequestError, match="device: cuda:1 is not there; torch sees 1 CUDA"):
        resolve_device("cuda:1")


def test_only_tf32_rounds_to_tf32_and_only_bf16_casts() -> None:
    before = flags()
    with arithmetic(CPU, "tf32"):
        assert flags()[:2] == (True, True)
        with arithmetic(CPU, "fp32"):
            assert flags()[:2] == (False, False)
        assert flags()[:2] == (True, True)
    with pytest.raises(ZeroDivisionError), arithmetic(CPU, "bf16"):
        1 / 0  # noqa: B018 - a run may end with any error
    assert flags() == before, "they are put back"
    for precision, casts in (("fp32", False), ("tf32", False), ("bf16", True)):
        with autocast(CPU, precision):  # type: ignore[arg-type]
            assert torch.is_autocast_enabled("cpu") == casts


def test_kernels_are_tried_for_convolutional_towers_on_cuda_unless_deterministic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    for device, convolutional, deterministic, tries in (
        (CUDA, True, False, True),
        (CUDA, True, True, False),
        (CUDA, False, False, False),
        (CPU, True, False, False),
        (CPU, False, True, False),
    ):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", not tries)
        before = flags()
        with arithmetic(device, "fp32", deterministic=deterministic, convolutional=convolutional):
            assert flags()[2:] == (tries, deterministic)
        assert flags() == before


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    before = flags()
    with pytest.raises(RequestError) as caught, arithmetic(CPU, "fp32", deterministic=True):
        raise RuntimeError("put_ does not have a deterministic implementation,\nbut you set ...")
    assert caught.match("^deterministic: true cannot be kept here: put_ does not have .*, but you")
    assert flags() == before
    with pytest.raises(RuntimeError, match="no deterministic kernel"), arithmetic(CPU, "fp32"):
        raise RuntimeError("no deterministic kernel, and none was asked for")


@pytest.mark.parametrize(("elsewhere", "context"), [(0, 500), (30_000, 1024)])
def test_on_cuda_memory_is_what_was_reserved_and_the_context(
    monkeypatch: pytest.MonkeyPatch, elsewhere: int, context: int
) -> None:
    """What another process holds of a shared GPU is not this one's."""
    reserved, peak, total = 2_000, 5_000, 80_000
    free = total - reserved - 500 - elsewhere
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * MIB, total * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: peak * MIB)
    assert peak_memory_mb(CUDA) == peak + context
    device_module.reset_peak_memory(CPU)
    assert 50 < peak_memory_mb(CPU) < 100_000, "that of the process"


def test_what_goes_to_a_gpu_is_pinned_or_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.ones(3)
    assert to_device(batch, CPU) is batch
    monkeypatch.setattr(torch, "cuda", MagicMock())
    monkeypatch.setattr(device_module, "_copying", MagicMock())
    for place, pinned in ((CPU, True), (CUDA, False)):
        tensor = MagicMock(device=place)
        source = tensor.pin_memory.return_value if pinned else tensor
        assert to_device(tensor, CUDA) is source.to.return_value
        source.to.assert_called_once_with(CUDA, non_blocking=True)
