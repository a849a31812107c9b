"""One function opens any CLIP: built in, by open_clip's name, from the hub, or from a file."""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.transform import PreprocessCfg
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from carft_core.data.transforms import Transform
from carft_core.errors import RequestError
from carft_core.files import found, keep, read_json, user_cache

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


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's content.

    It is kept in the user's cache under (path, size, mtime in ns), so that gigabytes are read
    once; an entry that is damaged or of another state of the file is not used.
    """
    path = path.resolve()
    key = _state_of(path)
    name = hashlib.sha256(str(path).encode()).hexdigest()
    entry = user_cache() / "weights" / f"{name}.json"
    stored = _kept_digest(entry, key)
    if stored is not None:
        return stored
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A file that was written to meanwhile must not be remembered under its later state.
    if _state_of(path) == key:
        text = json.dumps({**key, "sha256": digest})
        keep(entry, lambda file: file.write_text(text))
    return digest


def _state_of(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _kept_digest(file: Path, key: Mapping[str, Any]) -> str | None:
    try:
        entry = read_json(file)
    except (OSError, ValueError):
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
        weights = TINY_CLIP / HF_SAFE_WEIGHTS_NAME
        return ModelSource(name, *_read_config(TINY_CLIP / CONFIG), weights, None)
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


Tokenizer = Callable[..., Tensor]
"""open_clip's: a list of N texts, and `context_length` if another is wanted, to int64 [N, L]."""


@dataclass(frozen=True)
class OpenedClip:
    """A CLIP with its weights: frozen, in eval mode, fp32, on the CPU."""

    name: str
    """As the user wrote it."""
    model: nn.Module
    """open_clip's CLIP, CustomTextCLIP or CoCa; its image tower is `model.visual`."""
    tokenizer: Tokenizer
    transform: Transform
    digest: str
    """sha256 over architecture, preprocessing, and the content of the weights file."""
    fixed: frozenset[str] = frozenset()
    """The parameters that no training changes, such as sine-cosine position embeddings."""

    @property
    def logit_scale(self) -> float:
        """By what CLIP multiplies cosines to get logits, such as 100."""
        scale = self.model.logit_scale
        if not isinstance(scale, Tensor):
            raise TypeError(f"{self.name} has no logit scale")
        return float(scale.detach().exp())

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm float32 features [N, d] of N texts, on the model's device."""
        tokens = self.tokenizer(list(texts)).to(next(self.model.parameters()).device)
        features: Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        return F.normalize(features.float(), dim=-1)

    @property
    def context_length(self) -> int:
        """How many tokens of a text the model reads, the marks of start and end included."""
        return int(self.tokenizer.context_length)  # type: ignore[attr-defined]

    def cut_texts(self, texts: Sequence[str]) -> list[int]:
        """The indices of the texts that are too long for the model, which the tokenizer cuts.

        A text that fits gains nothing but padding when one token more is allowed.
        """
        length = self.context_length
        # The last token can be a mark of its own; the one before it is padding after an empty text.
        padding = self.tokenizer([""])[0, -2]
        read = (self.tokenizer(list(texts)) != padding).sum(dim=1)
        longer = (self.tokenizer(list(texts), context_length=length + 1) != padding).sum(dim=1)
        return torch.nonzero(longer > read).flatten().tolist()


def open_model(name: str, pretrained: str | None = None) -> OpenedClip:
    """Open a CLIP.

    `name` and `pretrained` are one of: `builtin`; an open_clip name with a tag or with the path of
    a checkpoint file; `hf-hub:org/model`; a folder with `open_clip_config.json` and weights.
    Global random state is left as it was. Raises
    RequestError for whatever of these cannot be found, read, downloaded, or fitted together.
    """
    source = find_model(name, pretrained)
    model = _built(source)
    fit(model, read_state(source.weights), name=name, path=source.weights)
    transform = _transform(model, source)
    fixed = frozenset(key for key, value in model.named_parameters() if not value.requires_grad)
    model = model.float().eval().requires_grad_(False)
    return OpenedClip(name, model, _tokenizer(source), transform, _digest(source), fixed)


def weights_digest(name: str, pretrained: str | None = None) -> str:
    """`open_model(...).digest` without building the model. Raises RequestError likewise."""
    return _digest(find_model(name, pretrained))


class Classifier(nn.Module):
    """What is evaluated: unit-norm features [B, d] of images, and logits [B, C] of these.

    Whatever an algorithm or a merge returns derives from it.
    """

    clip_features: bool = True
    """Whether its features lie in CLIP's own space, where contexts and other tasks' heads are
    measured."""

    def features(self, images: Tensor) -> Tensor:
        """Unit-norm float32 features [B, d] of normalised images [B, 3, S, S]."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """Logits [B, C] in float32 of such features."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of normalised images [B, 3, S, S]."""
        return self.logits(self.features(images))


class ImageClassifier(Classifier):
    """An image tower and a linear head without bias on its unit-norm features.

    The head's rows are `logit_scale * W_cls[c]` at the start; its state dict is what merges
    interpolate.
    """

    def __init__(self, visual: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.visual = visual
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """Unit-norm float32 features [B, d] of normalised images [B, 3, S, S].

        float32 under autocast too: in bf16 a norm is off by up to 0.4 %, and scale times that
        would show in every logit.
        """
        out = self.visual(images)
        if isinstance(out, (tuple, list)):
            out = out[0]  # Towers that also return tokens (CoCa) return the pooled feature first.
        return F.normalize(out.float(), dim=-1)

    def logits(self, features: Tensor) -> Tensor:
        """Logits [B, C] in float32 of unit-norm features [B, d]; see `features` for why."""
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.head(features)
        return out


def _built(source: ModelSource) -> nn.Module:
    """The architecture with random weights, as open_clip's create_model chooses its class.

    Not by create_model itself, which wants a registered name or a folder, and logs and warns
    about weights that are loaded here.
    """
    config: dict[str, Any] = deepcopy(dict(source.architecture))
    custom_text = config.pop("custom_text", False)
    try:
        custom_text = custom_text or "hf_model_name" in config["text_cfg"]
        for section, key in (("vision_cfg", "timm_model_name"), ("text_cfg", "hf_model_name")):
            if key in config[section]:
                config[section][key.replace("_name", "_pretrained")] = False
        kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
        if custom_text and "multimodal_cfg" in config:
            kind = open_clip.CoCa
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = kind(**config)
    except Exception as error:
        # A user's config is foreign input, and open_clip and timm have no error class for it.
        raise RequestError(
            f"model.name: {source.name}: open_clip cannot build this architecture "
            f"({type(error).__name__}: {error})"
        ) from error
    return model


def _transform(model: nn.Module, source: ModelSource) -> Transform:
    size = getattr(model.visual, "image_size", 224)
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if sides[0] != sides[1]:
        raise RequestError(
            f"model.name: {source.name} wants {sides} pixels; images here are square"
        )
    preprocess = PreprocessCfg(**{**source.preprocess, "size": sides[0]})
    # As create_model leaves it, so that open_clip's own tools see the same model.
    open_clip.set_model_preprocess_cfg(model, {**vars(preprocess), "size": size})
    return Transform(
        size=sides[0],
        mean=_per_channel(preprocess.mean, source),
        std=_per_channel(preprocess.std, source),
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
    )


def _per_channel(values: Sequence[float], source: ModelSource) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError):
        raise RequestError(
            f"model.name: {source.name}: mean and std are three numbers each, not {values!r}"
        ) from None
    return red, green, blue


def _tokenizer(source: ModelSource) -> Tokenizer:
    text: Mapping[str, Any] = source.architecture["text_cfg"]
    if source.tokenizer is None or "hf_tokenizer_name" not in text:
        length = text.get("context_length", 77)
        plain: Tokenizer = open_clip.SimpleTokenizer(
            context_length=length, **text.get("tokenizer_kwargs", {})
        )
        return plain
    try:
        found: Tokenizer = open_clip.get_tokenizer(source.tokenizer)
    except ImportError:
        raise RequestError(
            f"model.name: {source.name}: its tokenizer {text['hf_tokenizer_name']} needs the "
            "package transformers (pip install transformers)"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RequestError(
            f"model.name: {source.name}: its tokenizer {text['hf_tokenizer_name']} could not be "
            f"loaded ({reason}). Without a network put its files beside open_clip_config.json in a "
            "folder, and give the folder as model.name"
        ) from None
    return found


def _digest(source: ModelSource) -> str:
    parts = {
        "architecture": dict(source.architecture),
        "preprocess": dict(source.preprocess),
        "weights": file_digest(source.weights),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
