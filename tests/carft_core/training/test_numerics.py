"""Where a run computes: what `auto` is, which flags are set and put back, memory and threads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from unittest.mock import MagicMock

import pytest
import torch

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.training import numerics
from tests.carft_core.refusals import refused

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
    precisions = [
        numerics.resolve_precision("auto", torch.device("cuda", number)) for number in gpus
    ]
    assert precisions == ["fp32", "fp32", "bf16", "bf16"]


def test_what_is_named_is_taken_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numerics.resolve_precision("auto", CPU) == "fp32"
    assert numerics.resolve_precision("bf16", CPU) == "bf16"
    assert numerics.resolve_precision("tf32", CUDA) == "tf32"
    refused("precision: tf32 is for CUDA devices, not cpu", numerics.resolve_precision, "tf32", CPU)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert numerics.resolve_device("cuda:0").index == 0
    refused("device: cuda:1 is not there; torch sees 1 CUDA", numerics.resolve_device, "cuda:1")


def test_only_tf32_rounds_to_tf32_and_only_bf16_casts() -> None:
    before = flags()
    with numerics.arithmetic(CPU, "tf32"):
        assert flags()[:2] == (True, True)
        with numerics.arithmetic(CPU, "fp32"):
            assert flags()[:2] == (False, False)
        assert flags()[:2] == (True, True)
    with pytest.raises(ZeroDivisionError), numerics.arithmetic(CPU, "bf16"):
        1 / 0  # noqa: B018 - a run may end with any error
    assert flags() == before, "they are put back"
    for precision, casts in (("fp32", False), ("tf32", False), ("bf16", True)):
        with numerics.autocast(CPU, precision):  # type: ignore[arg-type]
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
        with numerics.arithmetic(
            device, "fp32", deterministic=deterministic, convolutional=convolutional
        ):
            assert flags()[2:] == (tries, deterministic)
        assert flags() == before


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    before = flags()
    with (
        pytest.raises(RequestError) as caught,
        numerics.arithmetic(CPU, "fp32", deterministic=True),
    ):
        raise RuntimeError("put_ does not have a deterministic implementation,\nbut you set ...")
    assert caught.match("^deterministic: true cannot be kept here: put_ does not have .*, but you")
    assert flags() == before
    with (
        pytest.raises(RuntimeError, match="no deterministic kernel"),
        numerics.arithmetic(CPU, "fp32"),
    ):
        raise RuntimeError("no deterministic kernel, and none was asked for")


@pytest.mark.parametrize(("elsewhere", "context"), [(0, 500), (30_000, 1024)])
def test_on_cuda_memory_is_what_was_reserved_and_the_context(
    monkeypatch: pytest.MonkeyPatch, elsewhere: int, context: int
) -> None:
    """What another process holds of a shared GPU is not this one's."""
    reserved, peak, total = 2_000, 5_000, 80_000
    free = total - reserved - 500 - elsewhere
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda _: (free * numerics.MIB, total * numerics.MIB)
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved * numerics.MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: peak * numerics.MIB)
    assert numerics.peak_memory_mb(CUDA) == peak + context
    numerics.reset_peak_memory(CPU)
    assert 50 < numerics.peak_memory_mb(CPU) < 100_000, "that of the process"


def test_what_goes_to_a_gpu_is_pinned_or_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.ones(3)
    assert numerics.to_device(batch, CPU) is batch
    monkeypatch.setattr(torch, "cuda", MagicMock())
    monkeypatch.setattr(numerics, "_copying", MagicMock())
    for place, pinned in ((CPU, True), (CUDA, False)):
        tensor = MagicMock(device=place)
        source = tensor.pin_memory.return_value if pinned else tensor
        assert numerics.to_device(tensor, CUDA) is source.to.return_value
        source.to.assert_called_once_with(CUDA, non_blocking=True)


NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def environment(module: str, **settings: str) -> dict[str, str]:
    """What a process that imports `module` and nothing else has of NAMES."""
    script = (
        f"import os, sys, {module}; assert 'torch' not in sys.modules;"
        f"print(*(f'{{n}}={{os.environ[n]}}' for n in {(*NAMES, CUBLAS)} if n in os.environ))"
    )
    environ = {name: value for name, value in os.environ.items() if name not in (*NAMES, CUBLAS)}
    command = [sys.executable, "-c", script]
    output = subprocess.check_output(command, env=environ | settings, text=True)
    return dict(part.split("=") for part in output.split())


@pytest.mark.parametrize(
    "module", ["carft_sweep", "carft_sweep.sweeps.cli", "carft_sweep.sweeps.engines.worker"]
)
def test_threads_wait_passively_and_cublas_works_the_same_way_each_time(module: str) -> None:
    assert environment(module) == {"OMP_WAIT_POLICY": "passive", CUBLAS: ":4096:8"}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_says_is_kept(name: str) -> None:
    settings = {name: "1", CUBLAS: ":16:8"}
    assert environment("carft_sweep", **settings) == settings
