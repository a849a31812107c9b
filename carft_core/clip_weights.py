"""Weight files of a CLIP: read without running them, fitted to a model, named by their content."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from carft_core.errors import RequestError
from carft_core.files import read_json, write_json

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
SHOWN = 10
"""How many tensors of each kind a message names."""
NOT_WEIGHTS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""What OpenAI's archives keep beside the weights."""
POSITION_IDS = "text.transformer.embeddings.position_ids"


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, without `module.` before its names.

    A safetensors file, or what torch.save wrote: a state dict, or a training checkpoint that holds
    one under `state_dict`. Nothing but tensors and plain data is unpickled. Raises RequestError
    for a file that is damaged, holds something else, or would have to be run to be read.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{path} is not a readable safetensors file: {error}") from None
    if path.suffix not in TORCH_SUFFIXES:
        allowed = ", ".join(WEIGHT_SUFFIXES)
        raise RequestError(f"{path}: a weights file ends in one of {allowed}")
    return _state_dict(_unpickled(path), path)


def fit(model: nn.Module, state: Mapping[str, Tensor], *, name: str, path: Path) -> None:
    """Load `state` into `model`; every tensor must have its place and its shape.

    Older layouts are converted as open_clip does, but positional embeddings are not resized:
    a checkpoint for another image size is another model. Raises RequestError that names the
    tensors which are missing, unexpected or of another shape.
    """
    given = _converted(model, state)
    wanted = model.state_dict()
    shapes = [
        f"{key} ({_shape(wanted[key])} in the model, {_shape(given[key])} in the file)"
        for key in wanted.keys() & given.keys()
        if wanted[key].shape != given[key].shape
    ]
    found = {
        "missing in the file": wanted.keys() - given.keys(),
        "unexpected": given.keys() - wanted.keys(),
        "of another shape": shapes,
    }
    differences = [_listed(kind, keys) for kind, keys in found.items() if keys]
    if differences:
        raise RequestError(f"{path} does not fit {name}: {'; '.join(differences)}")
    model.load_state_dict(given)


def file_digest(path: Path, cache: Path | None = None) -> str:
    """sha256 (hex) of a file's content.

    With a `cache` folder the digest is kept there under (path, size, mtime in ns), so that
    gigabytes are read once; an entry that is damaged or of another state of the file is not used.
    """
    path = path.resolve()
    key = _state_of(path)
    kept = None
    if cache is not None:
        name = hashlib.sha256(str(path).encode()).hexdigest()
        kept = cache / "weights" / f"{name}.json"
        known = _kept_digest(kept, key)
        if known is not None:
            return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file that was written to meanwhile must not be remembered under its later state.
    if kept is not None and _state_of(path) == key:
        write_json(kept, {**key, "sha256": digest})
    return digest


def _state_of(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _kept_digest(kept: Path, key: Mapping[str, Any]) -> str | None:
    try:
        entry = read_json(kept)
    except ValueError:
        return None
    if not isinstance(entry, dict) or {name: entry.get(name) for name in key} != key:
        return None
    digest = entry.get("sha256")
    return digest if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None


def _unpickled(path: Path) -> object:
    if _is_torchscript(path):
        raise RequestError(
            f"{path} is a TorchScript archive (as OpenAI published them): it holds code, and is "
            "not opened. Use the tag `openai`, whose weights come as safetensors, or save "
            "the archive's state dict to a file of its own"
        )
    try:
        with warnings.catch_warnings():
            # About pickles that torch.save did not write; they are refused below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Foreign bytes make the unpickler and the zip reader raise nearly anything.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise RequestError(
                f"{path} holds more than tensors ({refused[1]}): reading it would run its code, "
                "so it is not opened. Save the state dict alone, best as safetensors"
            ) from None
        raise RequestError(f"{path} is not a checkpoint of PyTorch, or is damaged") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _state_dict(checkpoint: object, path: Path) -> dict[str, Tensor]:
    state = checkpoint
    if isinstance(checkpoint, Mapping) and "state_dict" in checkpoint:
        state = checkpoint["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise RequestError(f"{path} holds no state dict but {type(state).__name__}")
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if others:
        keys = ", ".join(map(str, others[:SHOWN]))
        raise RequestError(
            f"{path} holds no state dict: not tensors are {keys}. Allowed is a state dict, or a "
            "checkpoint with one under `state_dict`"
        )
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _converted(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` in the layout of `model`, by open_clip's own conversions."""
    given = {key: value for key, value in state.items() if key not in NOT_WEIGHTS}
    given = dict(convert_state_dict(model, given))
    if "positional_embedding" in given and not hasattr(model, "positional_embedding"):
        given = dict(convert_to_custom_text_state_dict(given))
    own = model.state_dict()
    for key in ("logit_scale", "logit_bias"):
        if key in given and key in own and given[key].numel() == own[key].numel():
            given[key] = given[key].reshape(own[key].shape)
    if POSITION_IDS not in own:
        given.pop(POSITION_IDS, None)
    return given


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _listed(kind: str, names: Iterable[str]) -> str:
    """`3 missing in the file: a, b, c`, cut after ten names."""
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return f"{len(ordered)} {kind}: {', '.join(ordered[:SHOWN])}{more}"
