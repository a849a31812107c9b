"""Another device than the CPU, whose tensors have numbers: what a GPU would refuse is refused.

A tensor of it says that it is on `meta`, which PyTorch knows without a GPU, and holds one of the
CPU. An operation on tensors of both devices fails, unless it copies; so does a forgotten `.to`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map_only

from carft_sweep.carft_core.data.transforms import _per_channel
from carft_sweep.carft_core.models.teacher import Teacher, on_device

ELSEWHERE, HERE = torch.device("meta"), torch.device("cpu")
COPY, TO = torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default


class Elsewhere(Tensor):
    """A tensor of the other device; `value` is the one that it holds."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> Elsewhere:
        tensor: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=ELSEWHERE,
        )
        tensor.value = value
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _compute(operation, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Makes tensors on the other device, and copies them to it."""

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.tensor:
            device = (kwargs or {}).pop("device", None)
            return torch.tensor(*args, **(kwargs or {})).to(device or HERE)
        if function is Tensor.tolist:
            return args[0].cpu().tolist()
        return function(*args, **(kwargs or {}))


def _compute(operation: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    tensors = [item for item in tree_iter((args, kwargs)) if isinstance(item, Tensor)]
    # A number may lie anywhere.
    places = {isinstance(item, Elsewhere) for item in tensors if item.ndim}
    if len(places) > 1 and operation not in (COPY, TO):
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device")
    device = kwargs.get("device")
    is_elsewhere = any(isinstance(item, Elsewhere) for item in tensors)
    if device is not None:
        is_elsewhere, kwargs = torch.device(device) == ELSEWHERE, {**kwargs, "device": HERE}
    with _disable_current_modes():
        plain = tree_map_only(Elsewhere, lambda item: item.value, (args, dict(kwargs)))
        out = operation(*plain[0], **plain[1])
    if operation._schema.name.endswith("_") and isinstance(out, Tensor):
        return args[0]  # it was changed in place
    return tree_map_only(Tensor, Elsewhere, out) if is_elsewhere else out


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Let tensors be made on, and copied to, the device that is yielded."""
    autocast = torch.autocast  # knows nothing of `meta`
    on_cpu = mock.patch.object(torch, "autocast", lambda _, **more: autocast("cpu", **more))
    _per_channel.cache_clear()  # of tensors of `meta` that have no numbers
    without = mock.patch.object(
        torch, "inference_mode", lambda mode=True: torch.set_grad_enabled(not mode)
    )
    with on_cpu, without, _Mode(), _Functions():
        yield ELSEWHERE


def teacher_on(teacher: Teacher, device: torch.device) -> Teacher:
    """A teacher of the CPU on another device, where a run would have opened it."""
    return replace(
        teacher,
        w_cls=teacher.w_cls.to(device),
        w_ctx=teacher.w_ctx.to(device),
        classifier=on_device(teacher.new_classifier(), device).requires_grad_(False).eval(),
        device=device,
    )
