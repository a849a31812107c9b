"""The tensors of a run on disk: saved atomically, read without unpickling anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from carft_core.errors import RequestError
from carft_core.files import write_atomically


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """A state dict as safetensors, on CPU, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, lambda file: save_file(tensors, str(file)))


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dict that `save_weights` wrote. Raises RequestError when it is not one."""
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise RequestError(f"{path} is not a safetensors file: {error}") from None


def save_progress(path: Path, progress: Mapping[str, Any]) -> None:
    """What a run needs to go on exactly: tensors and plain data, atomically."""
    write_atomically(path, lambda file: torch.save(dict(progress), file))


def load_progress(path: Path) -> dict[str, Any] | None:
    """What `save_progress` wrote; None when there is nothing, or nothing that can be read.

    An unreadable file costs its run a start from the beginning, not the sweep.
    """
    try:
        progress: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception:  # A torn or foreign file makes the unpickler fail in any way.
        return None
    return progress
