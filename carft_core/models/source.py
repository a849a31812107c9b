"""Find the files of a CLIP: built in, by open_clip's name, of the hub, in a folder, a file."""

from __future__ import annotations

import difflib
import functools
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from carft_sweep.carft_core.errors import DownloadFailed, RequestError
from carft_sweep.carft_core.files import path_or_none, read_json
from carft_sweep.carft_core.models.weights import WEIGHT_SUFFIXES, check_contents

# open_clip takes a second to import, and who reads a config or an image classifier does without.

_PACKAGED = Path(__file__).parents[1] / "builtin"
BUILTIN: Mapping[str, Path] = {
    "builtin": _PACKAGED / "tiny_clip",
    "builtin_vit": _PACKAGED / "tiny_vit",
}
"""The models in this package and their folders: a ConvNeXt, and open_clip's own ViT."""


HUB, FOLDER = "hf-hub:", "local-dir:"


CONFIG = "open_clip_config.json"
ARCHITECTURE_KEYS = ("embed_dim", "vision_cfg", "text_cfg")
MOST: Mapping[str, int] = {"image_size": 1024, "context_length": 4096, "layers": 1000}
"""The greatest number that a model's config may have under a key; under others `MOST_OF_OTHERS`."""
MOST_OF_OTHERS = 1_000_000
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")


SAFE_WEIGHTS, PICKLED_WEIGHTS = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
"""What open_clip calls a model's weights on the hub and in a folder."""
_TRY_LATER = (408, 429)
"""The HTTP status of a timeout and of too many requests."""
TOKENIZER_OPTIONS = ("clean", "strip_sep_token", "language")
"""The tokenizer options that a model's config may set. open_clip passes on any option, and others
than these run the model's code, open any file, or draw at random."""


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
    opener: str
    """The name by which open_clip opens the architecture: its own, or `local-dir:FOLDER`."""
    tokenizer: str
    """The name by which open_clip finds the tokenizer."""
    tokenizer_files: tuple[Path, ...] = ()
    """The files in the model's own folder that its tokenizer may be read from."""


def brings_weights(name: str) -> bool:
    """Return whether a `model.name` includes weights: built in, of the hub, or in a folder."""
    path = path_or_none(name)
    return name in BUILTIN or name.startswith((HUB, FOLDER)) or (path is not None and path.is_dir())


def find_model(name: str, pretrained: str | None = None) -> ModelSource:
    """Find the model that `name` and `pretrained` mean, downloading it if necessary. Raises
    RequestError for an unknown name or tag (with the near ones), for a name without weights, a
    missing path, an invalid config, and a failed download."""
    if name in BUILTIN or name.startswith((HUB, FOLDER)):
        return _own_source(name, pretrained)
    # A second and 100 MB that no other way of naming a model needs.
    import open_clip

    names = open_clip.list_models()
    path = path_or_none(name)
    if path is not None and path.is_dir() and name not in names:
        return _own_source(name, pretrained)
    own_name = name.replace("/", "-")
    if own_name not in names:
        raise RequestError(_unknown_model(name, names))
    architecture = open_clip.get_model_config(own_name)
    tags = open_clip.list_pretrained_tags_by_model(own_name)
    tag = open_clip.get_pretrained_cfg(own_name, pretrained) if pretrained else None
    if tag:
        if tag.get("quick_gelu"):
            # open_clip only warns here, and would run the weights with another activation.
            architecture["quick_gelu"] = True
        preprocess, weights = _agreed([tag]), _tag_weights(own_name, str(pretrained), tag)
    else:
        preprocess = _agreed([open_clip.get_pretrained_cfg(own_name, tag) for tag in tags])
        weights = _local_file(own_name, pretrained, tags)
    return ModelSource(name, architecture, preprocess, weights, own_name, own_name)


def _own_source(name: str, pretrained: str | None) -> ModelSource:
    """Return a model that brings its own weights."""
    if pretrained is not None:
        raise RequestError(
            f"model.pretrained: {pretrained!r} has no place beside model.name: {name}, which "
            "brings its own weights; leave it out"
        )
    return _folder_source(name, _folder_of(name))


def _folder_of(name: str) -> Path:
    """Return the folder of a model that brings its own weights, with config, weights and the
    tokenizer's files."""
    if name in BUILTIN:
        return BUILTIN[name]
    if name.startswith(HUB):
        repo = name.removeprefix(HUB)
        config = _from_hub(name, repo, CONFIG)
        _from_hub(name, repo, SAFE_WEIGHTS, PICKLED_WEIGHTS)
        return config.parent
    written = name.removeprefix(FOLDER)
    folder = path_or_none(written)
    if folder is None or not (folder / CONFIG).is_file():
        raise RequestError(f"model.name: {name}: there is no file {Path(written) / CONFIG}")
    return folder


def _folder_source(name: str, folder: Path) -> ModelSource:
    path = folder / CONFIG
    try:
        config = read_json(path, follow=True)  # the hub's cache has links
    except (RequestError, OSError) as error:
        raise RequestError(f"{path} is not a model config: {error}") from None
    architecture = config.get("model_cfg") if isinstance(config, dict) else None
    present = architecture if isinstance(architecture, dict) else {}
    lacking = [key for key in ARCHITECTURE_KEYS if key not in present]
    if lacking:
        raise RequestError(
            f"{path} is not a model config of open_clip: its model_cfg lacks {', '.join(lacking)}"
        )
    preprocess = config.get("preprocess_cfg") or {}
    if not isinstance(preprocess, dict):
        raise RequestError(f"{path}: preprocess_cfg must be a mapping")
    _check_architecture(path, present)
    tokenizer = opener = f"{FOLDER}{folder}"
    tokenizer_files: tuple[Path, ...] = ()
    if present["text_cfg"].get("hf_tokenizer_name"):
        if name.startswith(HUB):  # of the hub's model only config and weights are in this folder
            tokenizer = name
        else:
            tokenizer_files = _tokenizer_files(folder)
    preprocess, weights = _agreed([preprocess]), _weights_in(folder)
    check_contents(weights)
    return ModelSource(name, present, preprocess, weights, opener, tokenizer, tokenizer_files)


def _tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """Return the files in a model's folder that a tokenizer of any kind may read."""
    others = (*WEIGHT_SUFFIXES, ".md")
    return tuple(
        file
        for file in sorted(folder.iterdir())
        if not (file.name == CONFIG or file.name.startswith(".") or file.suffix in others)
        and file.is_file()
    )


def _check_architecture(path: Path, architecture: Mapping[str, Any]) -> None:
    """Raise RequestError for a config that is too large, runs foreign code, or reads elsewhere."""
    sections = {"model_cfg": architecture}
    for key in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        sections[key] = architecture.get(key, {})
        if not isinstance(sections[key], Mapping):
            raise RequestError(f"{path}: {key} must be a mapping")
    for section, values in sections.items():
        for key, value in values.items():
            most = MOST.get(key, MOST_OF_OTHERS)
            numbers = value if isinstance(value, list) else [value]
            # Not "is greater", since NaN is not.
            if not all(abs(n) <= most for n in numbers if isinstance(n, (int, float))):
                raise RequestError(f"{path}: {section}.{key} is {value!s:.80}; at most {most:,}")
    towers = {**sections["vision_cfg"], **sections["text_cfg"]}
    for key in ("timm_model_name", "hf_tokenizer_name", "hf_model_name"):
        if not isinstance(towers.get(key, ""), str):
            raise RequestError(f"{path}: {key} must be a text, not {towers[key]!r}")
    _check_text_tower(path, sections["text_cfg"])


def _check_text_tower(path: Path, text: Mapping[str, Any]) -> None:
    """Raise RequestError for a text tower or tokenizer that could run foreign code."""
    options = text.get("tokenizer_kwargs", {})
    if not isinstance(options, dict):
        raise RequestError(f"{path}: tokenizer_kwargs must be a mapping")
    refused = [key for key in options if key not in TOKENIZER_OPTIONS]
    if refused:
        raise RequestError(
            f"{path}: tokenizer_kwargs: {', '.join(map(str, refused))} cannot be set by a model; "
            f"allowed: {', '.join(TOKENIZER_OPTIONS)}. Take the rest out of the file"
        )
    tower = text.get("hf_model_name")
    if tower and tower not in published("hf_model_name"):
        raise RequestError(
            f"{path}: hf_model_name: {tower!r} is no text tower that open_clip itself uses; "
            f"allowed: {', '.join(sorted(published('hf_model_name')))}"
        )


@functools.cache
def published(key: str) -> frozenset[str]:
    """Return the repositories that open_clip's architectures name under a key of `text_cfg`."""
    import open_clip

    configs = map(open_clip.get_model_config, open_clip.list_models())
    return frozenset(config["text_cfg"][key] for config in configs if key in config["text_cfg"])


def _weights_in(folder: Path) -> Path:
    for name in (SAFE_WEIGHTS, PICKLED_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    files = sorted(
        file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES and file.is_file()
    )
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.name for file in files) or "none"
    raise RequestError(
        f"{folder}: which file holds the weights? Found: {names}. Call it {SAFE_WEIGHTS}"
    )


def _agreed(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the preprocessing values on which all configs agree; those that differ are left out. A
    user's checkpoint for an open_clip name does not state its preprocessing; where every published
    checkpoint of that name needs the same (all of SigLIP's: mean and std 0.5), so does the file."""
    agreed = {}
    for key in PREPROCESS_KEYS:
        values = [config.get(key) for config in configs]
        if values and values[0] is not None and all(value == values[0] for value in values):
            agreed[key] = values[0]
    return agreed


def _tag_weights(name: str, tag: str, config: Mapping[str, Any]) -> Path:
    import open_clip

    request = f"model.pretrained: {tag} (of {name})"
    hub = str(config.get("hf_hub") or "")
    if hub:
        # open_clip writes "org/model/file", or "org/model/" for the usual file, and takes the
        # safetensors twin of a pickled file first.
        repo, _, file = hub.rpartition("/")
        if file in ("", PICKLED_WEIGHTS):
            return _from_hub(request, repo, SAFE_WEIGHTS, PICKLED_WEIGHTS)
        if file.endswith((".bin", ".pth")):
            return _from_hub(request, repo, str(Path(file).with_suffix(".safetensors")), file)
        return _from_hub(request, repo, file)
    try:
        return Path(open_clip.download_pretrained(config))
    except (OSError, RuntimeError) as error:
        raise _not_downloaded(request, error) from None


def _from_hub(request: str, repo: str, *files: str) -> Path:
    """Return the first of `files` in the hub's local cache, else downloaded from the repository."""
    try:
        for file in files:
            cached = huggingface_hub.try_to_load_from_cache(repo, file)
            if isinstance(cached, str):
                return Path(cached)
        _look_up_hub()
        for file in files[:-1]:
            try:
                return Path(huggingface_hub.hf_hub_download(repo, file))
            except LocalEntryNotFoundError:  # no network: another name would only wait again
                raise
            except EntryNotFoundError:
                continue
        return Path(huggingface_hub.hf_hub_download(repo, files[-1]))
    except Exception as error:
        # The hub's client lets errors of its HTTP library through, and changed that library.
        raise _not_downloaded(request, error) from None


def _look_up_hub() -> None:
    """Raise OSError at once where the hub's host name cannot be resolved: the hub's client would
    try again for half a minute. Does nothing offline (HF_HUB_OFFLINE), and behind a proxy."""
    if not (getproxies() or huggingface_hub.constants.HF_HUB_OFFLINE):
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, None)


def _not_downloaded(request: str, error: Exception) -> RequestError:
    kind = RequestError if is_final(error) else DownloadFailed
    return kind(
        f"{request} could not be downloaded ({one_line(error)}). Without a network try the model "
        "builtin, or use a local file, model.name: <open_clip name> with model.pretrained: <path "
        f"of its checkpoint>, or a folder with {CONFIG} as model.name"
    )


def is_final(error: Exception) -> bool:
    """Return whether a failed download can never succeed, for a wrong name or missing access."""
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", getattr(error, "code", None))
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _TRY_LATER
    if isinstance(error, EntryNotFoundError):
        return not isinstance(error, LocalEntryNotFoundError)
    return isinstance(error, ValueError)


def _local_file(name: str, pretrained: str | None, tags: Sequence[str]) -> Path:
    listed = ", ".join(sorted(tags)) or "none"
    choice = f"Tags of {name}: {listed}. Or the path of a checkpoint file"
    if not pretrained:
        raise RequestError(
            f"model.pretrained: {name} alone has random weights; give model.pretrained. {choice}"
        )
    path = path_or_none(pretrained)
    if path is not None and path.is_file():
        check_contents(path)
        return path
    near = near_names(pretrained, tags, count=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RequestError(
        f"model.pretrained: {pretrained!r} is no tag of {name}, and there is no file "
        f"{Path(pretrained).absolute()}; {hint}{choice}"
    )


def _unknown_model(name: str, names: Sequence[str]) -> str:
    near = ", ".join(near_names(name, [*BUILTIN, *names], count=5)) or "none"
    return (
        f"model.name: unknown model {name!r}; near names: {near}. Allowed: "
        f"{', '.join(BUILTIN)}, an open_clip name (as open_clip.list_models() lists them) with a "
        f"tag or a checkpoint file as model.pretrained, {HUB}<org>/<model>, or an existing "
        f"folder with {CONFIG}"
    )


def near_names(name: str, names: Iterable[str], count: int) -> list[str]:
    """Return the names that are spelt similarly, whatever their capitals, the nearest first."""
    lower = {candidate.lower(): candidate for candidate in names}
    return [lower[hit] for hit in difflib.get_close_matches(name.lower(), lower, count, 0.5)]


def one_line(error: Exception) -> str:
    """Return an error's text in one line, cut after 300 characters."""
    return " ".join(str(error).split())[:300]
