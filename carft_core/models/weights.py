"""Weight files: their digests, what is read of them, and whether they fit a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import (
    check_archive,
    check_regular,
    read_json,
    user_cache,
    write_cache,
)
from carft_sweep.carft_core.requirements import refuse_outdated

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
LISTED = 10
"""How many keys a message names."""
NOT_WEIGHTS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""What OpenAI's archives keep beside the weights."""
POSITION_IDS = "text.transformer.embeddings.position_ids"


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file's content. The digest is stored in the user's cache under
    (path, size, mtime and ctime in ns), so that gigabytes are read once; an entry that is damaged
    or of another state of the file is not used."""
    path = path.resolve()
    state = _state_of(path)
    name = hashlib.sha256(str(path).encode()).hexdigest()
    file = user_cache() / "weights" / f"{name}.json"
    entry: object = None
    with contextlib.suppress(OSError, ValueError):
        entry = read_json(file)
    if isinstance(entry, dict) and re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))):
        digest: str = entry["sha256"]
        if entry == {**state, "sha256": digest}:
            return digest
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # A file that was written to meanwhile must not be remembered under its later state.
    if _state_of(path) == state:
        text = json.dumps({**state, "sha256": digest})
        write_cache(file, lambda new: new.write_text(text))
    return digest


def _state_of(path: Path) -> dict[str, Any]:
    stat = path.stat()
    times = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    return {"path": str(path), "size": stat.st_size, **times}


def read_tensor(file: Path, name: str) -> Tensor | None:
    """Return a tensor of a safetensors file of the cache; None for a missing or damaged one."""
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        return load_file(file)[name]
    return None


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint file, without `module.` before its names.

    The file is safetensors, or of torch.save: a state dict, or a training checkpoint with one under
    `state_dict`. Nothing but tensors and plain data is unpickled. Raises RequestError for a file
    that is damaged, holds something else, or would run code when read.
    """
    check_regular(path, follow=True)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{path} is not a readable safetensors file: {error}") from None
    if path.suffix not in TORCH_SUFFIXES:
        allowed = ", ".join(WEIGHT_SUFFIXES)
        raise RequestError(f"{path}: a weights file ends in one of {allowed}")
    state = _unpickled(path)
    if isinstance(state, Mapping) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise RequestError(f"{path} holds no state dict but {type(state).__name__}")
    others = [
        key
        for key, value in state.items()
        if not (isinstance(key, str) and isinstance(value, Tensor) and is_plain(value))
    ]
    if others:
        keys = ", ".join(map(str, others[:LISTED]))
        raise RequestError(
            f"{path} holds no state dict: not tensors are {keys}. Allowed is a state dict, or a "
            "checkpoint with one under `state_dict`"
        )
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def check_contents(path: Path) -> None:
    """Raise RequestError for a checkpoint with more than tensors, by the index of its archive:
    nothing of it is run. What the index does not tell, `read_state` finds."""
    names: list[str] = []
    with contextlib.suppress(Exception):  # foreign bytes make the reader raise nearly anything
        check_archive(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if names:
        raise _more_than_tensors(path, names[0])


def _more_than_tensors(path: Path, name: str) -> RequestError:
    return RequestError(
        f"{path} holds more than tensors ({name}): reading it would run its code, so it is not "
        "opened. Save the state dict alone, best as safetensors"
    )


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is stored whole: dense, and neither quantised nor complex."""
    is_stored = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return is_stored and not (tensor.is_quantized or tensor.is_complex())


def _unpickled(path: Path) -> object:
    refuse_outdated("torch", f"{path} is a pickle: a crafted one may run code when it is read")
    try:
        with warnings.catch_warnings():
            # About pickles that torch.save did not write; they are refused below.
            warnings.simplefilter("ignore")
            check_archive(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except RequestError:
        raise
    except Exception as error:
        # Foreign bytes make the unpickler and the zip reader raise nearly anything.
        text = str(error)
        if isinstance(error, RuntimeError) and "TorchScript archive" in text:
            raise RequestError(
                f"{path} is a TorchScript archive (as OpenAI published them): it holds code, and "
                "is not opened. Use the tag `openai`, whose weights come as safetensors, or save "
                "the archive's state dict to a file of its own"
            ) from None
        refused = re.search(r"GLOBAL ([\w.]+)", text)
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise _more_than_tensors(path, refused[1]) from None
        raise RequestError(f"{path} is not a checkpoint of PyTorch, or is damaged") from error


def fit(
    model: nn.Module, state: Mapping[str, Tensor], *, name: str, path: Path
) -> dict[str, Tensor]:
    """Load `state` into `model` and return it in the model's layout. Of a model on `meta`, which
    has no values, only names and shapes are compared. `name` and `path`, of model and file, are for
    messages.

    Older layouts are converted as open_clip does, but positional embeddings are not resized: a
    checkpoint for another image size is another model. Raises RequestError that names the tensors
    which are missing, unexpected or of another shape.
    """
    tensors = _converted(model, state)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about `meta`, where nothing is copied
            model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:1000]
        raise RequestError(f"{path} does not fit {name}: {reason}") from None
    return tensors


def _converted(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` in the layout of `model`, by open_clip's own conversions."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    tensors = {key: value for key, value in state.items() if key not in NOT_WEIGHTS}
    tensors = dict(convert_state_dict(model, tensors))
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = dict(convert_to_custom_text_state_dict(tensors))
    own = model.state_dict()
    for key in ("logit_scale", "logit_bias"):
        if key in tensors and key in own and tensors[key].numel() == own[key].numel():
            tensors[key] = tensors[key].reshape(own[key].shape)
    if POSITION_IDS not in own:
        tensors.pop(POSITION_IDS, None)
    return tensors
