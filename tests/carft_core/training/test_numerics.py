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


@pytest.mark.parametrize(
    ("capability", "precision"), [(T4, "fp32"), (V100, "fp32"), (A100, "bf16"), (H100, "bf16")]
)
def test_auto_is_bf16_only_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    # What PyTorch says by default on a T4: bf16 is emulated there.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_precision("auto", CUDA) == precision


def test_auto_asks_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    two = {0: T4, 1: A100}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: two[device.index])
    assert resolve_precision("auto", torch.device("cuda:1")) == "bf16"
    assert resolve_precision("auto", torch.device("cuda:0")) == "fp32"


def test_a_precision_that_is_named_is_taken_and_tf32_is_for_cuda() -> None:
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("tf32", CUDA) == "tf32"
    with pytest.raises(RequestError, match="precision: tf32 is for CUDA devices, not cpu"):
        resolve_precision("tf32", CPU)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0").index == 0
    with pytest.raises(RequestError, match="device: cuda:1 is not there; torch sees 1 CUDA"):
        resolve_device("cuda:1")


def test_only_tf32_rounds_to_tf32_and_the_flags_are_put_back() -> None:
    before = flags()
    with arithmetic(CPU, "tf32"):
        assert flags()[:2] == (True, True)
        with arithmetic(CPU, "fp32"):
            assert flags()[:2] == (False, False)
        assert flags()[:2] == (True, True)
    with pytest.raises(ZeroDivisionError), arithmetic(CPU, "bf16"):
        1 / 0  # noqa: B018 - a run may end with any error
    assert flags() == before


def test_deterministic_allows_no_other_kernel_and_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    with arithmetic(CPU, "fp32", deterministic=True):
        assert flags()[2:] == (False, True)
    assert flags() == before


@pytest.mark.parametrize(
    ("device", "convolutional", "deterministic", "tries"),
    [
        (CUDA, True, False, True),
        (CUDA, True, True, False),
        (CUDA, False, False, False),
        (CPU, True, False, False),
    ],
)
def test_kernels_are_tried_for_convolutional_towers_on_cuda_unless_deterministic(
    monkeypatch: pytest.MonkeyPatch,
    *,
    device: torch.device,
    convolutional: bool,
    deterministic: bool,
    tries: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
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


def test_autocast_is_for_bf16_alone() -> None:
    for precision in ("fp32", "tf32"):
        with autocast(CPU, precision):
            assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU, "bf16"):
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("others", "context"), [(0, 500), (30_000, 1024)])
def test_on_cuda_memory_is_what_was_reserved_and_the_context(
    monkeypatch: pytest.MonkeyPatch, others: int, context: int
) -> None:
    """What another process holds of a shared GPU is not this one's."""
    reserved, peak, total = 2_000, 5_000, 80_000
    free = total - reserved - 500 - others
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * MIB, total * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: peak * MIB)
    assert peak_memory_mb(CUDA) == peak + context


def test_on_the_cpu_nothing_is_copied() -> None:
    batch = torch.ones(3)
    assert to_device(batch, CPU) is batch


def test_what_goes_to_a_gpu_is_pinned_first_or_the_copy_would_be_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "cuda", MagicMock())
    monkeypatch.setattr(device_module, "_copying", MagicMock())
    for place, pinned in ((CPU, True), (CUDA, False)):
        tensor = MagicMock(device=place)
        source = tensor.pin_memory.return_value if pinned else tensor
        assert to_device(tensor, CUDA) is source.to.return_value
        source.to.assert_called_once_with(CUDA, non_blocking=True)


def test_on_the_cpu_memory_is_that_of_the_process() -> None:
    device_module.reset_peak_memory(CPU)
    assert 50 < peak_memory_mb(CPU) < 100_000
