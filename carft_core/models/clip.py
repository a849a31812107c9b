"""Open any CLIP: the built-in one, by open_clip's name, from the hub, from a folder or a file."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import logging
import pickle
import re
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.data.views import Transform
from carft_sweep.carft_core.errors import DownloadFailed, RequestError, unknown
from carft_sweep.carft_core.files import (
    check_archive,
    check_regular,
    existing,
    keep,
    read_json,
    user_cache,
)
from carft_sweep.carft_core.requirements import refuse_outdated
from carft_sweep.carft_core.training.numerics import one_attention_path

# open_clip takes a second to import, and who reads a config or an image classifier does without.

BUILTIN = "builtin"
TINY_CLIP = Path(__file__).parents[1] / "builtin" / "tiny_clip"
HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG = "open_clip_config.json"
ARCHITECTURE_KEYS = ("embed_dim", "vision_cfg", "text_cfg")
MOST: Mapping[str, int] = {"image_size": 1024, "context_length": 4096, "layers": 1000}
"""The greatest number that a model's config may have under a key; under others `MOST_OF_OTHERS`."""
MOST_OF_OTHERS = 1_000_000
RESIZE_MODES = ("shortest", "longest", "squash")
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
SAFE_WEIGHTS, PICKLED_WEIGHTS = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
"""What open_clip calls a model's weights on the hub and in a folder."""
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_TRY_LATER = (408, 429)
"""The HTTP status of a timeout and of too many requests."""
LISTED = 10
"""How many tensors of each kind a message names."""
NOT_WEIGHTS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""What OpenAI's archives keep beside the weights."""
POSITION_IDS = "text.transformer.embeddings.position_ids"
TOKENIZER_OPTIONS = ("clean", "strip_sep_token", "language")
"""What a model's config may say of its tokenizer. open_clip passes on whatever stands there, and
others of these options run the model's code, open any file, or draw at random."""

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
    """sha256 over architecture, preprocessing, and the content of the weights file; where a folder
    brings a tokenizer of its own, of that one's files too."""
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
        """Unit-norm float32 features [N, d] of N texts, on the model's device.

        Raises RequestError where weights are so large that these are no numbers.
        """
        tokens = self.tokenizer(list(texts)).to(next(self.model.parameters()).device)
        features: Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        features = F.normalize(features.float(), dim=-1)
        if not torch.isfinite(features).all():
            raise RequestError(f"model.name: {self.name}: its weights give NaN for texts")
        return features

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


class Classifier(nn.Module):
    """What is evaluated: unit-norm features [B, d] of images, and logits [B, C] of these.

    Whatever an algorithm or a merge returns derives from it.
    """

    clip_features: bool = True
    """Whether its features lie in CLIP's own space, where contexts and other tasks' heads are
    measured."""

    @property
    def parts(self) -> tuple[Classifier, ...]:
        """The classifiers whose features, side by side, are its own; by default itself. A merge of
        several at many points names them, so that each passes the images once."""
        return (self,)

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

    def embed(self, images: Tensor) -> Tensor:
        """The tower's float32 outputs [B, d], before they are normalised."""
        return tower_outputs(self.visual, images)

    def features(self, images: Tensor) -> Tensor:
        """Unit-norm float32 features [B, d] of normalised images [B, 3, S, S].

        float32 under autocast too: in bf16 a norm is off by up to 0.4 %, and scale times that
        would show in every logit.
        """
        return F.normalize(self.embed(images), dim=-1)

    def logits(self, features: Tensor) -> Tensor:
        """Logits [B, C] in float32 of unit-norm features [B, d]; see `features` for why."""
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.head(features)
        return out


def towers_in(model: nn.Module, like: nn.Module) -> list[nn.Module]:
    """The image towers within a module, whatever wraps them: those of the type of another one."""
    return [part for part in model.modules() if type(part) is type(like)]


def checkpoint_gradients(model: nn.Module, tower: nn.Module) -> None:
    """Let the towers within a module keep no activations inside their blocks, and compute them
    again on the way back; `tower` is an image tower like those within.

    Raises RequestError where the image tower cannot.
    """
    with _root_logger_silent():  # open_clip logs of timm's that they cannot, which is refused below
        for part in model.modules():
            enable = getattr(part, "set_grad_checkpointing", None)
            if callable(enable):
                enable(True)
    for own in towers_in(model, tower):
        # A ModifiedResNet has the method, which does nothing.
        if not any(getattr(part, "grad_checkpointing", False) for part in own.modules()):
            raise RequestError(
                f"optim.grad_checkpointing: the image tower {type(own).__name__} cannot compute "
                "its activations again; leave the field out, and set optim.micro_batch to the part "
                "of a batch that fits into memory"
            )


def tower_outputs(visual: nn.Module, images: Tensor) -> Tensor:
    """float32 outputs [B, d] of one of open_clip's image towers for images [B, 3, S, S]."""
    out = visual(images)
    if isinstance(out, (tuple, list)):
        out = out[0]  # Towers that also return tokens (CoCa) return the pooled feature first.
    pooled: Tensor = out.float()
    return pooled


def open_model(name: str, pretrained: str | None = None) -> OpenedClip:
    """Open a CLIP.

    `name` and `pretrained` are one of: `builtin`; an open_clip name with a tag or with the path of
    a checkpoint file; `hf-hub:org/model`; a folder with `open_clip_config.json` and weights.
    Global random state is left as it was. Raises RequestError for whatever of these cannot be
    found, read, downloaded, or fitted together.
    """
    source = find_model(name, pretrained)
    model, transform = _open(source)
    fixed = frozenset(key for key, value in model.named_parameters() if not value.requires_grad)
    model = model.float().eval().requires_grad_(False)
    return OpenedClip(name, model, _tokenizer(source), transform, _digest(source), fixed)


def open_image_tower(folder: Path) -> tuple[nn.Module, Transform]:
    """Open the image tower of the model in a folder: in eval mode, fp32, on the CPU.

    Its tokenizer is not opened. Raises RequestError likewise.
    """
    model, transform = _open(find_model(f"{FOLDER}{folder}"))
    tower: nn.Module = model.visual  # type: ignore[assignment]
    return tower.float().eval().requires_grad_(False), transform


def _open(source: ModelSource) -> tuple[nn.Module, Transform]:
    """The model with its weights. No more memory is taken than they fill."""
    one_attention_path()
    shapes = _build(source, "meta")
    tensors = fitted(shapes, read_state(source.weights), name=source.name, path=source.weights)
    model = _build(source)
    model.load_state_dict(tensors)
    return model, _transform(model, source.name)


@functools.lru_cache(maxsize=8)
def draws_at_random(name: str, pretrained: str | None, digest: str) -> bool:
    """Tell whether the image tower of the model that has this digest draws at random while it
    trains, as dropout and stochastic depth do.

    Its weights are not read. Raises RequestError as `open_model` does.
    """
    del digest
    tower: nn.Module = _build(find_model(name, pretrained), "meta").visual  # type: ignore[assignment]
    return any(_drop_rate(module) > 0 for module in tower.modules())


def _drop_rate(module: nn.Module) -> float:
    """How often a layer leaves something out; of torch, of open_clip and of timm alike."""
    if isinstance(module, nn.MultiheadAttention):
        return float(module.dropout)
    rates = ("p", "prob", "drop_prob") if "drop" in type(module).__name__.lower() else ()
    return max((float(getattr(module, key, 0.0)) for key in rates), default=0.0)


def weights_digest(name: str, pretrained: str | None = None) -> str:
    """`open_model(...).digest` without building the model. Raises RequestError likewise."""
    return _digest(find_model(name, pretrained))


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
    """What a tokenizer in the model's own folder may be read from."""


def brings_weights(name: str) -> bool:
    """Whether a `model.name` stands for weights too: the built-in one, of the hub, a folder."""
    path = existing(name)
    return name == BUILTIN or name.startswith((HUB, FOLDER)) or (path is not None and path.is_dir())


def find_model(name: str, pretrained: str | None = None) -> ModelSource:
    """Find what `name` and `pretrained` speak of, downloading it if need be.

    Raises RequestError for an unknown name or tag (with the near ones), for a name without
    weights, a path that is not there, a config that is none, and a download that fails.
    """
    if name == BUILTIN or name.startswith((HUB, FOLDER)):
        return _own_source(name, pretrained)
    # A second and 100 MB that no other way of naming a model needs.
    import open_clip

    names = open_clip.list_models()
    path = existing(name)
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
    """Find a model that brings its own weights."""
    if pretrained is not None:
        raise RequestError(
            f"model.pretrained: {pretrained!r} has no place beside model.name: {name}, which "
            "brings its own weights; leave it out"
        )
    return _folder_source(name, _folder_of(name))


def _folder_of(name: str) -> Path:
    """The folder of a model that brings its own weights: config, weights, tokenizer's files."""
    if name == BUILTIN:
        return TINY_CLIP
    if name.startswith(HUB):
        repo = name.removeprefix(HUB)
        config = _from_hub(name, repo, CONFIG)
        _from_hub(name, repo, SAFE_WEIGHTS, PICKLED_WEIGHTS)
        return config.parent
    written = name.removeprefix(FOLDER)
    folder = existing(written)
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
        if name.startswith(HUB):  # it is not among the files that are kept here of its model
            tokenizer = name
        else:
            tokenizer_files = _tokenizer_files(folder)
    preprocess, weights = _agreed([preprocess]), _weights_in(folder)
    return ModelSource(name, present, preprocess, weights, opener, tokenizer, tokenizer_files)


def _tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files in a model's folder that its tokenizer may read: which it does depends on its
    kind."""
    others = (*WEIGHT_SUFFIXES, ".md")
    return tuple(
        file
        for file in sorted(folder.iterdir())
        if not (file.name == CONFIG or file.name.startswith(".") or file.suffix in others)
        and file.is_file()
    )


def _check_architecture(path: Path, architecture: Mapping[str, Any]) -> None:
    """Raise RequestError for an architecture without bounds, or one that could run somebody's code
    or read another place."""
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
    """Raise RequestError for a text tower or tokenizer that could run somebody's code."""
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
    if tower and tower not in _published("hf_model_name"):
        raise RequestError(
            f"{path}: hf_model_name: {tower!r} is no text tower that open_clip itself uses; "
            f"allowed: {', '.join(sorted(_published('hf_model_name')))}"
        )


@functools.cache
def _published(key: str) -> frozenset[str]:
    """The repositories that open_clip's own architectures name under a key of `text_cfg`."""
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
    """The preprocessing that all configs agree on; what they differ in is left out.

    A user's own file for an open_clip name says nothing about it; when every published checkpoint
    of that name wants the same (all of SigLIP's: mean and std 0.5), so will the file.
    """
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
    """The first of `files` that is in the hub's cache on this disk, else in the repository."""
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
    """Raise OSError where the hub's name cannot be resolved, at once: its client would try again
    for half a minute. Behind a proxy names are resolved there.
    """
    if not (getproxies() or huggingface_hub.constants.HF_HUB_OFFLINE):
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, None)


def _not_downloaded(request: str, error: Exception) -> RequestError:
    kind = RequestError if _is_final(error) else DownloadFailed
    return kind(
        f"{request} could not be downloaded ({_one_line(error)}). Without a network use a local "
        "file, model.name: <open_clip name> with model.pretrained: <path of its checkpoint>, "
        f"or a folder with {CONFIG} as model.name"
    )


def _is_final(error: Exception) -> bool:
    """Whether the same download can never succeed: a wrong name, or no access to it."""
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
    path = existing(pretrained)
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


def _unknown_model(name: str, names: Sequence[str]) -> str:
    allowed = (
        f"Allowed: {BUILTIN}, an open_clip name (as open_clip.list_models() lists them), "
        f"{HUB}<org>/<model>, or a folder with {CONFIG}"
    )
    if existing(name) is not None:
        return (
            f"model.name: {name} is a file; the file belongs in model.pretrained, and model.name "
            f"says which architecture it has. {allowed}"
        )
    if _looks_like_path(name):
        return f"model.name: there is no folder {name}. {allowed}"
    near = ", ".join(_near(name, names, count=5)) or "none"
    return f"model.name: unknown model {name!r}; near names: {near}. {allowed}"


def _near(name: str, names: Iterable[str], count: int) -> list[str]:
    lower = {candidate.lower(): candidate for candidate in names}
    return [lower[hit] for hit in difflib.get_close_matches(name.lower(), lower, count, 0.5)]


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or Path(name).suffix in WEIGHT_SUFFIXES


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _root_logger_silent() -> Iterator[None]:
    """open_clip logs on the root logger that the weights, which are loaded next, are random; the
    first such call would also give the root logger a handler for good."""
    root, handler = logging.getLogger(), logging.NullHandler()
    drop = lambda _: False  # noqa: E731
    root.addHandler(handler)
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(handler)


def _build(source: ModelSource, device: str = "cpu") -> nn.Module:
    """The architecture with random weights and the preprocessing, as open_clip makes it; on the
    device `meta` without numbers, so that it takes no memory."""
    import open_clip
    import timm

    tower, towers = source.architecture["vision_cfg"].get("timm_model_name"), timm.list_models()
    if tower and tower not in towers:  # such as hf-hub:org/model, or local-dir:/etc
        near = ", ".join(_near(tower, towers, count=5)) or "none"
        raise RequestError(
            f"model.name: {source.name}: timm_model_name: {tower!r} is no image tower of timm; "
            f"near names: {near}"
        )
    try:
        with torch.random.fork_rng(devices=[]), _root_logger_silent(), torch.device(device):
            model: nn.Module = open_clip.create_model(
                source.opener,
                device=device,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=bool(source.architecture.get("quick_gelu")),
                force_preprocess_cfg=dict(source.preprocess),
            )
    except Exception as error:
        # A user's config is foreign input, and open_clip and timm have no error class for it.
        raise RequestError(
            f"model.name: {source.name}: open_clip cannot build this architecture "
            f"({type(error).__name__}: {error})"
        ) from error
    return model


def _transform(model: nn.Module, name: str) -> Transform:
    import open_clip
    from torchvision.transforms import InterpolationMode

    preprocess = open_clip.get_model_preprocess_cfg(model)
    size = preprocess["size"]
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if sides[0] != sides[1]:
        raise RequestError(f"model.name: {name} wants {sides} pixels; images here are square")
    modes = {"interpolation": {it.value for it in InterpolationMode}, "resize_mode": RESIZE_MODES}
    for key, allowed in modes.items():
        if preprocess[key] not in allowed:
            raise RequestError(f"model.name: {name}: {unknown(key, preprocess[key], allowed)}")
    return Transform(
        size=sides[0],
        mean=_per_channel(preprocess["mean"], name),
        std=_per_channel(preprocess["std"], name),
        interpolation=preprocess["interpolation"],
        resize_mode=preprocess["resize_mode"],
    )


def _per_channel(values: Sequence[float], name: str) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError):
        raise RequestError(
            f"model.name: {name}: mean and std are three numbers each, not {values!r}"
        ) from None
    return red, green, blue


def _tokenizer(source: ModelSource) -> Tokenizer:
    """Open the tokenizer. Code that it names is never run.

    A folder's files are read where it lies; a model of the hub takes its own repository's, or those
    of a repository that open_clip itself uses.
    """
    import open_clip

    name = source.architecture["text_cfg"].get("hf_tokenizer_name")
    allowed = {source.name.removeprefix(HUB), *_published("hf_tokenizer_name")}
    if name and source.tokenizer.startswith(HUB) and name not in allowed:
        raise RequestError(
            f"model.name: {source.name}: its tokenizer is that of another repository, {name}, "
            f"which open_clip does not use either. Put its files beside {CONFIG} in a folder, "
            "and give the folder as model.name"
        )
    # CLIP's own tokenizer is no code of anybody's, and does not know the option.
    options = {"trust_remote_code": False} if name else {}
    try:
        with _root_logger_silent():
            tokenizer: Tokenizer = open_clip.get_tokenizer(source.tokenizer, **options)
    except ImportError:
        raise RequestError(
            f"model.name: {source.name}: its tokenizer {name} needs the package transformers "
            "(pip install transformers)"
        ) from None
    except Exception as error:
        # Of a model's files, which may hold anything, transformers makes any error.
        may_pass = isinstance(error, OSError) and not _is_final(error)
        kind = DownloadFailed if may_pass else RequestError
        raise kind(
            f"model.name: {source.name}: its tokenizer {name or ''} could not be loaded "
            f"({_one_line(error)}). Without a network put its files beside {CONFIG} in a folder, "
            "and give the folder as model.name"
        ) from None
    return tokenizer


def _digest(source: ModelSource) -> str:
    parts = {
        "architecture": dict(source.architecture),
        "preprocess": dict(source.preprocess),
        "weights": file_digest(source.weights),
    }
    if source.tokenizer_files:
        parts["tokenizer"] = {it.name: file_digest(it) for it in source.tokenizer_files}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's content.

    It is kept in the user's cache under (path, size, mtime and ctime in ns), so that gigabytes are
    read once; an entry that is damaged or of another state of the file is not used.
    """
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
        keep(file, lambda new: new.write_text(text))
    return digest


def _state_of(path: Path) -> dict[str, Any]:
    stat = path.stat()
    times = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    return {"path": str(path), "size": stat.st_size, **times}


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, without `module.` before its names.

    A safetensors file, or what torch.save wrote: a state dict, or a training checkpoint that holds
    one under `state_dict`. Nothing but tensors and plain data is unpickled. Raises RequestError
    for a file that is damaged, holds something else, or would have to be run to be read.
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


def is_plain(tensor: Tensor) -> bool:
    """Whether it holds every number that it shows: none of them is left out, packed or complex."""
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
            raise RequestError(
                f"{path} holds more than tensors ({refused[1]}): reading it would run its code, "
                "so it is not opened. Save the state dict alone, best as safetensors"
            ) from None
        raise RequestError(f"{path} is not a checkpoint of PyTorch, or is damaged") from error


def fit(model: nn.Module, state: Mapping[str, Tensor], *, name: str, path: Path) -> None:
    """Load `state` into `model`. Raises RequestError as `fitted` does."""
    model.load_state_dict(fitted(model, state, name=name, path=path))


def fitted(
    model: nn.Module, state: Mapping[str, Tensor], *, name: str, path: Path
) -> dict[str, Tensor]:
    """Return `state` in the layout of `model`; every tensor must have its place and its shape.

    Older layouts are converted as open_clip does, but positional embeddings are not resized:
    a checkpoint for another image size is another model. Raises RequestError that names the
    tensors which are missing, unexpected or of another shape.
    """
    tensors, own = _converted(model, state), model.state_dict()
    shapes = [
        f"{key} ({list(own[key].shape)} in the model, {list(tensors[key].shape)} in the file)"
        for key in own.keys() & tensors.keys()
        if own[key].shape != tensors[key].shape
    ]
    differences = {
        "missing in the file": own.keys() - tensors.keys(),
        "unexpected": tensors.keys() - own.keys(),
        "of another shape": shapes,
    }
    listed = [_listed(kind, keys) for kind, keys in differences.items() if keys]
    if listed:
        raise RequestError(f"{path} does not fit {name}: {'; '.join(listed)}")
    return tensors


def _converted(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` in the layout of `model`, by open_clip's own conversions."""
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


def _listed(kind: str, names: Iterable[str]) -> str:
    """`3 missing in the file: a, b, c`, cut after ten names."""
    ordered = sorted(names)
    more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    return f"{len(ordered)} {kind}: {', '.join(ordered[:LISTED])}{more}"
