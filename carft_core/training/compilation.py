"""Whether and how the image towers of a run's steps are compiled."""

from __future__ import annotations

import contextlib
import copy
import logging
from typing import Literal

import torch
from torch import nn

from carft_sweep.carft_core.models.classifier import tower_outputs, towers_in
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.training.numerics import autocast

IMAGES_THAT_PAY = 2_000_000
"""From how many images of all steps on `compile: auto` compiles. An estimate, not measured: a
minute or two are spent at the start, and a fifth of what a ViT-B takes for so many, 10 to 20
minutes on an H100, is saved."""
BACKEND = "inductor"

_compiled: list[tuple[str, str, int]] = []
"""What this process has graphs of: a model's digest, a precision, and a batch size."""
_LOG = logging.getLogger(__name__)


def should_compile(setting: bool | Literal["auto"], device: torch.device, images: int) -> bool:
    """Return whether to compile a run whose steps have `images` in all; `auto`: on CUDA only."""
    if setting == "auto":
        return device.type == "cuda" and images >= IMAGES_THAT_PAY
    return setting


def eager_unless(compiled: int, size: int) -> contextlib.AbstractContextManager[object]:
    """Return a context that switches compilation off for batches of `size` images, unless
    `compiled`, the size for which towers were compiled (0: none), is the same."""
    if compiled in (0, size):
        return contextlib.nullcontext()
    eager: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


def compile_towers(model: nn.Module, teacher: Teacher, batch_size: int) -> str | None:
    """Compile the towers within `model` and the teacher's for batches of this size, in place: no
    name of a state dict changes, and a copy of a module is not compiled. Other sizes are for
    `eager_unless`.

    Compilation is tried first on copies, one step of each; where that fails nothing is compiled,
    and the reason is logged and returned, else None. Raises OutOfMemoryError.
    """
    # PyTorch keeps 8 graphs of a function and silently compiles no more; a run has 2 or 4.
    kind = (teacher.clip.digest, teacher.precision, batch_size)
    if kind not in _compiled:
        if len(_compiled) == 2:
            torch._dynamo.reset()
            _compiled.clear()
        _compiled.append(kind)
    own = teacher.classifier.visual
    towers = [*towers_in(model, own), own]
    try:
        for tower in towers:
            _try(tower, teacher, batch_size)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers, theirs and the system's, raise nearly anything
        reason = " ".join(str(error).split())[:300]
        warning = (
            f"compile: the image tower could not be compiled, so its steps are computed as they "
            f"are written, slower ({type(error).__name__}: {reason})"
        )
        _LOG.warning(warning)
        return warning
    for tower in towers:
        tower.compile(dynamic=False, backend=BACKEND)
    return None


def _try(tower: nn.Module, teacher: Teacher, batch_size: int) -> None:
    """Take a compiled step of a copy of a tower, whose code similar towers then share."""
    trial = copy.deepcopy(tower)
    trial.compile(dynamic=False, backend=BACKEND)
    side, device = teacher.transform.size, teacher.device
    images = torch.zeros(batch_size, 3, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    trains = any(parameter.requires_grad for parameter in trial.parameters())
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        teacher.arithmetic(),
        torch.set_grad_enabled(trains),
    ):
        with autocast(device, teacher.precision):
            outputs = tower_outputs(trial, images)
        if trains:
            outputs.sum().backward()
