"""What a model's name stands for: an architecture, a preprocessing, and one weights file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from carft_core.clip_weights import WEIGHT_SUFFIXES
from carft_core.errors import RequestError
from carft_core.paths import found

BUILTIN = "builtin"
TINY_CLIP = Path(__file__).parent / "builtin" / "tiny_clip"
HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG = "open_clip_config.json"
ARCHITECTURE_KEYS = ("embed_dim", "vision_cfg", "text_cfg")
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
FOLDER_WEIGHTS: tuple[str, ...] = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
"""What open_clip calls a model's weights on the hub, the better form first."""


@dataclass(frozen=True)
class ModelSource:
    """A model that was found and not yet built."""

    name: str
    """As the user wrote it."""
    architecture: Mapping[str, Any]
    """open_clip's `model_cfg`, with the activation that the weights were trained with."""
    preprocess: Mapping[str, Any]
    """mean, std, interpolation, resize_mode, as far as the source says them."""
    weights: Path
    tokenizer: str | None
    """The name under which open_clip finds its tokenizer; None: CLIP's own, by the config."""


def find_model(name: str, pretrained: str | None = None) -> ModelSource:
    """Find what `name` and `pretrained` speak of, downloading it if need be.

    Raises RequestError for an unknown name or tag (with the near ones), for a name without
    weights, a path that is not there, a config that is none, and a download that fails.
    """
    if name == BUILTIN or name.startswith((HUB, FOLDER)) or _is_folder(name):
        if pretrained is not None:
            raise RequestError(
                f"model.pretrained: {pretrained!r} has no place beside model.name: {name}, which "
                "brings its own weights; leave it out"
            )
        return _complete_model(name)
    known = name.replace("/", "-")
    if known not in open_clip.list_models():
        raise RequestError(_unknown_model(name))
    architecture = open_clip.get_model_config(known)
    tag = open_clip.get_pretrained_cfg(known, pretrained) if pretrained else None
    if tag:
        if tag.get("quick_gelu"):
            # open_clip only warns here, and would run the weights with another activation.
            architecture["quick_gelu"] = True
        weights, stated = _tag_weights(known, str(pretrained), tag), [tag]
    else:
        weights = _local_file(known, pretrained)
        tags = open_clip.list_pretrained_tags_by_model(known)
        stated = [open_clip.get_pretrained_cfg(known, tag) for tag in tags]
    return ModelSource(name, architecture, _agreed(stated), weights, known)


def _complete_model(name: str) -> ModelSource:
    """A model that stands for its own weights: built in, on the hub, or in a folder."""
    if name == BUILTIN:
        config, weights = TINY_CLIP / "tiny_clip.json", TINY_CLIP / "tiny_clip.safetensors"
        return ModelSource(name, *_read_config(config), weights, None)
    if name.startswith(HUB):
        repo = name.removeprefix(HUB)
        architecture, preprocess = _read_config(_from_hub(name, repo, CONFIG))
        weights = _from_hub(name, repo, HF_WEIGHTS_NAME)
        return ModelSource(name, architecture, preprocess, weights, name)
    written = name.removeprefix(FOLDER)
    folder = found(written)
    if folder is None or not (folder / CONFIG).is_file():
        raise RequestError(f"model.name: {name}: there is no file {Path(written) / CONFIG}")
    architecture, preprocess = _read_config(folder / CONFIG)
    weights = _weights_in(folder)
    return ModelSource(name, architecture, preprocess, weights, f"{FOLDER}{folder}")


def _read_config(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(architecture, preprocessing) of a config in open_clip's form for the hub, or a bare one."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RequestError(f"{path} is not a model config: {error}") from None
    architecture = config.get("model_cfg", config) if isinstance(config, dict) else config
    lacking = [
        key
        for key in ARCHITECTURE_KEYS
        if not isinstance(architecture, dict) or key not in architecture
    ]
    if lacking:
        raise RequestError(
            f"{path} is not a model config of open_clip: it lacks {', '.join(lacking)}"
        )
    architecture = {key: value for key, value in architecture.items() if key != "preprocess_cfg"}
    preprocess = config.get("preprocess_cfg") or {}
    if not isinstance(preprocess, dict):
        raise RequestError(f"{path}: preprocess_cfg must be a mapping")
    return architecture, _agreed([preprocess])


def _weights_in(folder: Path) -> Path:
    for name in FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.name for file in files) or "none"
    raise RequestError(
        f"{folder}: which file holds the weights? Found: {names}. Call it {FOLDER_WEIGHTS[0]}"
    )


def _agreed(stated: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The preprocessing that all of `stated` agree on; what they differ in is left out.

    A user's own file for an open_clip name says nothing about it; when every published checkpoint
    of that name wants the same (all of SigLIP's: mean and std 0.5), so will the file.
    """
    configs = list(stated)
    agreed = {}
    for key in PREPROCESS_KEYS:
        values = [config.get(key) for config in configs]
        if values and values[0] is not None and all(value == values[0] for value in values):
            agreed[key] = values[0]
    return agreed


def _tag_weights(name: str, tag: str, config: Mapping[str, Any]) -> Path:
    asked = f"model.pretrained: {tag} (of {name})"
    hub = str(config.get("hf_hub") or "")
    if hub:
        # open_clip writes "org/model/file", or "org/model/" for the usual file.
        repo, _, file = hub.rpartition("/")
        return _from_hub(asked, repo, file or HF_WEIGHTS_NAME)
    try:
        return Path(open_clip.download_pretrained(config))
    except (OSError, RuntimeError) as error:
        raise RequestError(_not_downloaded(asked, error)) from None


def _from_hub(asked: str, repo: str, file: str) -> Path:
    """A file of a hub repository: from the hub's cache on this disk, else downloaded."""
    candidates = (*_safer(file), file)
    try:
        for candidate in candidates:
            kept = huggingface_hub.try_to_load_from_cache(repo, candidate)
            if isinstance(kept, str):
                return Path(kept)
        return _downloaded(repo, candidates)
    except Exception as error:
        # The hub's client lets errors of its HTTP library through, and changed that library.
        raise RequestError(_not_downloaded(asked, error)) from None


def _downloaded(repo: str, candidates: Sequence[str]) -> Path:
    """The first of `candidates` that the repository has."""
    *better, last = candidates
    for candidate in better:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, candidate))
        except LocalEntryNotFoundError:  # no network: another name would only wait again
            raise
        except EntryNotFoundError:
            continue
    return Path(huggingface_hub.hf_hub_download(repo, last))


def _safer(file: str) -> tuple[str, ...]:
    """The safetensors twin under which open_clip looks for a pickled file first."""
    if file == HF_WEIGHTS_NAME:
        return (HF_SAFE_WEIGHTS_NAME,)
    path = Path(file)
    return (str(path.with_suffix(".safetensors")),) if path.suffix in (".bin", ".pth") else ()


def _not_downloaded(asked: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return (
        f"{asked} could not be downloaded ({reason}). Without a network use a local file, "
        "model.name: <open_clip name> with model.pretrained: <path of its checkpoint>, "
        f"or a folder with {CONFIG} as model.name"
    )


def _local_file(name: str, pretrained: str | None) -> Path:
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = ", ".join(sorted(tags)) or "none"
    choice = f"Tags of {name}: {known}. Or the path of a checkpoint file"
    if not pretrained:
        raise RequestError(f"model.pretrained: {name} alone has random weights. {choice}")
    path = found(pretrained)
    if path is not None and path.is_file():
        return path
    if path is not None:
        raise RequestError(
            f"model.pretrained: {pretrained} is a folder; give a file, or name a folder with "
            f"{CONFIG} in model.name"
        )
    if _looks_like_path(pretrained):
        raise RequestError(f"model.pretrained: there is no file {pretrained}. {choice}")
    near = _near(pretrained, tags, count=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RequestError(f"model.pretrained: unknown tag {pretrained!r}; {hint}{choice}")


def _unknown_model(name: str) -> str:
    allowed = (
        f"Allowed: {BUILTIN}, an open_clip name (as open_clip.list_models() lists them), "
        f"{HUB}<org>/<model>, or a folder with {CONFIG}"
    )
    if found(name) is not None:
        return (
            f"model.name: {name} is a file; the file belongs in model.pretrained, and model.name "
            f"says which architecture it has. {allowed}"
        )
    if _looks_like_path(name):
        return f"model.name: there is no folder {name}. {allowed}"
    near = ", ".join(_near(name, open_clip.list_models(), count=5)) or "none"
    return f"model.name: unknown model {name!r}; near names: {near}. {allowed}"


def _near(name: str, names: Iterable[str], count: int) -> list[str]:
    lower = {known.lower(): known for known in names}
    return [lower[hit] for hit in difflib.get_close_matches(name.lower(), lower, count, 0.5)]


def _is_folder(name: str) -> bool:
    """A folder, unless an open_clip model has that very name."""
    path = found(name)
    return path is not None and path.is_dir() and name not in open_clip.list_models()


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or Path(name).suffix in WEIGHT_SUFFIXES
