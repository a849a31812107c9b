"""What one run gets to compute with, and what `auto` in its config comes to there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from carft_core.errors import RequestError
from sweeps.resources import Need, Node, usable_cpus

if TYPE_CHECKING:
    from carft_core.config import TrialConfig


@dataclass(frozen=True)
class Hardware:
    """What one run gets. The driver resolves `auto` against it once, before anything is filed."""

    cpus: int
    """Cores of the run's share."""
    gpus: int = 0
    """CUDA devices that the run sees."""
    mps: bool = False
    bf16: bool = False
    """Whether every GPU on which the run may land is known to compute bf16."""
    why_fp32: str = ""
    """Why `bf16` is False where there are GPUs."""

    @property
    def device(self) -> Literal["cpu", "cuda", "mps"]:
        """What `device: auto` comes to."""
        return "cuda" if self.gpus else "mps" if self.mps else "cpu"

    def resolve(self, config: TrialConfig) -> TrialConfig:
        """`config` with its device, precision and workers said.

        Raises RequestError for a device that the run does not get, or a precision that it lacks.
        """
        import torch

        from carft_core.data.loader import default_workers
        from carft_core.device import resolve_precision

        device = self.device if config.device == "auto" else config.device
        self._check(device)
        precision = config.precision
        if precision == "auto":
            precision = "bf16" if _is_cuda(device) and self.bf16 else "fp32"
        workers = config.workers
        if workers == "auto":
            workers = default_workers(device.partition(":")[0], self.cpus)
        return config.model_copy(
            update={
                "device": device,
                "precision": resolve_precision(precision, torch.device(device)),
                "workers": workers,
            }
        )

    def notes(self, config: TrialConfig) -> Iterator[str]:
        """What its user should know of how `config` was resolved."""
        device = self.device if config.device == "auto" else config.device
        if config.precision == "auto" and _is_cuda(device) and not self.bf16:
            yield f"precision: auto is fp32, since {self.why_fp32}; precision: bf16 would be kept"

    def _check(self, device: str) -> None:
        kind, _, index = device.partition(":")
        if kind == "cuda" and int(index or 0) >= self.gpus:
            gpus = "1 GPU" if self.gpus == 1 else f"{self.gpus} GPUs"
            raise RequestError(f"device: {device} is not there: a run gets {gpus} (resources.gpus)")
        if kind == "mps" and not self.mps:
            raise RequestError("device: mps is not there: a run gets none")


def hardware_here(gpus: float | None, cpus: int | None) -> Hardware:
    """What a run gets on this machine as the only one; `gpus` 0 hides them, None takes all."""
    import torch

    from carft_core.device import resolve_precision

    cores = cpus or usable_cpus()
    if gpus == 0:
        return Hardware(cores)
    if not torch.cuda.is_available():
        return Hardware(cores, mps=torch.backends.mps.is_available())
    bf16 = resolve_precision("auto", torch.device("cuda")) == "bf16"
    why = "" if bf16 else "the GPU of this machine computes no bf16"
    return Hardware(cores, torch.cuda.device_count(), bf16=bf16, why_fp32=why)


def hardware_of(need: Need, supply: Sequence[Node]) -> Hardware:
    """What a run that takes `need` gets on whichever node of `supply` has room for it."""
    cores, gpus = max(1, int(need.cpus)), math.ceil(need.gpus)
    if not gpus:
        return Hardware(cores)
    able = [node for node in supply if node.fits(need)]
    unable = [node.name for node in able if node.bf16 is False]
    unknown = [node.name for node in able if node.bf16 is None]
    why = ""
    if unable:
        why = f"a GPU of {', '.join(unable)} computes no bf16"
    elif unknown or not able:
        names = ", ".join(unknown) or "the nodes"
        why = f"nobody knows whether the GPUs of {names} compute bf16"
    return Hardware(cores, gpus, bf16=not why, why_fp32=why)


def _is_cuda(device: str) -> bool:
    return device.partition(":")[0] == "cuda"
