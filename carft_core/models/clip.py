"""Open any CLIP: the built-in one, by open_clip's name, from the hub, from a folder or a file."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.errors import DownloadFailed, RequestError, unknown
from carft_sweep.carft_core.models.classifier import built, towers_in
from carft_sweep.carft_core.models.source import (
    CONFIG,
    FOLDER,
    HUB,
    ModelSource,
    find_model,
    is_final,
    near_names,
    one_line,
    published,
)
from carft_sweep.carft_core.models.weights import file_digest, fit, read_state
from carft_sweep.carft_core.training.numerics import one_attention_path

RESIZE_MODES = ("shortest", "longest", "squash")
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
    """sha256 over architecture, preprocessing, and the content of the weights file; with a
    tokenizer in the model's own folder, also over the tokenizer's files."""
    fixed: frozenset[str] = frozenset()
    """The parameters that no training changes, such as sine-cosine position embeddings."""

    @property
    def image_tower(self) -> nn.Module:
        """The image tower."""
        return built(self.model.visual, nn.Module)

    @property
    def logit_scale(self) -> float:
        """The factor by which CLIP multiplies cosines to get logits, such as 100."""
        return float(built(self.model.logit_scale, Tensor).detach().exp())

    def text_tower(self, device: torch.device) -> nn.Module:
        """Return a copy of the model on the device, without the image tower, the larger part."""
        tower = copy.deepcopy(self.model, {id(self.model.visual): nn.Identity()})
        return tower.to(device, non_blocking=True)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return unit-norm float32 features [N, d] of N texts, on the model's device. Raises
        RequestError where features are not finite, as with too large weights."""
        tokens = self.tokenizer(list(texts)).to(next(self.model.parameters()).device)
        features: Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        features = F.normalize(features.float(), dim=-1)
        if not torch.isfinite(features).all():
            raise RequestError(f"model.name: {self.name}: its weights give NaN for texts")
        return features

    def random_texts(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Return tokens [count, L] of texts: `length` random tokens between the start and end
        tokens. Raises RequestError for another tokenizer than CLIP's own and for too long texts."""
        start, end = (getattr(self.tokenizer, f"{mark}_token_id", None) for mark in ("sot", "eot"))
        if start is None or end is None:
            raise RequestError(
                f"model.name: {self.name} has another tokenizer than CLIP's own, whose marks of "
                "start and end random texts need"
            )
        if length + 2 > self.context_length:
            raise RequestError(
                f"algorithm.tokens: {self.name} reads {self.context_length} tokens of a text, two "
                f"of them marks, and not {length} between these"
            )
        texts = torch.zeros(count, self.context_length, dtype=torch.int64)
        texts[:, 0] = start
        # The marks are the last of the vocabulary.
        texts[:, 1 : length + 1] = torch.randint(start, (count, length), generator=generator)
        texts[:, length + 1] = end
        return texts

    @property
    def context_length(self) -> int:
        """How many tokens of a text the model reads, including the start and end tokens."""
        return int(self.tokenizer.context_length)  # type: ignore[attr-defined]

    def cut_texts(self, texts: Sequence[str]) -> list[int]:
        """Return the indices of the texts that are too long for the model, so that the tokenizer
        cuts them. A text that fits gains nothing but padding when one token more is allowed."""
        length = self.context_length
        # The last token can be a mark of its own; the one before it is padding after an empty text.
        padding = self.tokenizer([""])[0, -2]
        read = (self.tokenizer(list(texts)) != padding).sum(dim=1)
        longer = (self.tokenizer(list(texts), context_length=length + 1) != padding).sum(dim=1)
        return torch.nonzero(longer > read).flatten().tolist()


def checkpoint_gradients(model: nn.Module, tower: nn.Module) -> None:
    """Make the towers within a module compute the activations inside their blocks again in the
    backward pass, instead of storing them; `tower` is an image tower like those within. Raises
    RequestError where the image tower does not support that."""
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


def open_model(name: str, pretrained: str | None = None) -> OpenedClip:
    """Return an opened CLIP with its weights.

    `name` and `pretrained` are one of: a name of `BUILTIN`; an open_clip name with a tag or with
    the path of a checkpoint file; `hf-hub:org/model`; a folder with `open_clip_config.json` and
    weights. Global random state is left as it was. Raises RequestError where model or weights
    cannot be found, read, downloaded, or do not fit.
    """
    source = find_model(name, pretrained)
    return _make_clip(source, *_open(source))


def open_shapes(name: str, pretrained: str | None = None) -> OpenedClip:
    """Return a CLIP without weights: its tensors are on the device `meta` and have no values.
    Raises RequestError as `open_model` does."""
    source = find_model(name, pretrained)
    model = _build(source, "meta")
    return _make_clip(source, model, _transform(model, name))


def _make_clip(source: ModelSource, model: nn.Module, transform: Transform) -> OpenedClip:
    fixed = frozenset(key for key, value in model.named_parameters() if not value.requires_grad)
    model = model.float().eval().requires_grad_(False)
    return OpenedClip(source.name, model, _tokenizer(source), transform, _digest(source), fixed)


def open_image_tower(folder: Path) -> tuple[nn.Module, Transform]:
    """Return the image tower of the model in a folder, and its preprocessing: in eval mode, fp32,
    on the CPU. Its tokenizer is not opened. Raises RequestError as `open_model` does."""
    model, transform = _open(find_model(f"{FOLDER}{folder}"))
    return built(model.visual, nn.Module).float().eval().requires_grad_(False), transform


def _open(source: ModelSource) -> tuple[nn.Module, Transform]:
    """Return the model with its weights, in the memory that these fill, and the preprocessing."""
    one_attention_path()
    shapes = _build(source, "meta")
    tensors = fit(shapes, read_state(source.weights), name=source.name, path=source.weights)
    model = _build(source)
    model.load_state_dict(tensors)
    return model, _transform(model, source.name)


@functools.lru_cache(maxsize=8)
def draws_at_random(name: str, pretrained: str | None, digest: str) -> bool:
    """Return whether the image tower of the model with this digest draws at random in training, as
    dropout and stochastic depth do. The weights are not read. Raises RequestError as `open_model`
    does."""
    del digest
    tower = built(_build(find_model(name, pretrained), "meta").visual, nn.Module)
    return any(_drop_rate(module) > 0 for module in tower.modules())


def _drop_rate(module: nn.Module) -> float:
    """Return the probability with which a layer of torch, open_clip or timm drops values."""
    if isinstance(module, nn.MultiheadAttention):
        return float(module.dropout)
    rates = ("p", "prob", "drop_prob") if "drop" in type(module).__name__.lower() else ()
    return max((float(getattr(module, key, 0.0)) for key in rates), default=0.0)


def weights_digest(name: str, pretrained: str | None = None) -> str:
    """Return `open_model(...).digest` without building the model. Raises RequestError as
    `open_model` does."""
    return _digest(find_model(name, pretrained))


@contextlib.contextmanager
def _root_logger_silent() -> Iterator[None]:
    """Silence the root logger within the context: open_clip logs there that the weights, which are
    loaded next, are random; the first such call would also add a handler for good."""
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
    """Return the architecture with random weights and the preprocessing, as open_clip makes both;
    on the device `meta` without values, so that it takes no memory."""
    import open_clip
    import timm

    tower, towers = source.architecture["vision_cfg"].get("timm_model_name"), timm.list_models()
    if tower and tower not in towers:  # such as hf-hub:org/model, or local-dir:/etc
        near = ", ".join(near_names(tower, towers, count=5)) or "none"
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
    modes = {
        "interpolation": {mode.value for mode in InterpolationMode},
        "resize_mode": RESIZE_MODES,
    }
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
    """Return the tokenizer of a model. Code that it names is never run. Its files are those in a
    model's folder; for a model of the hub those of the model's own repository, or of a repository
    that open_clip itself uses."""
    import open_clip

    name = source.architecture["text_cfg"].get("hf_tokenizer_name")
    allowed = {source.name.removeprefix(HUB), *published("hf_tokenizer_name")}
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
        may_pass = isinstance(error, OSError) and not is_final(error)
        kind = DownloadFailed if may_pass else RequestError
        raise kind(
            f"model.name: {source.name}: its tokenizer {name or ''} could not be loaded "
            f"({one_line(error)}). Without a network put its files beside {CONFIG} in a folder, "
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
        parts["tokenizer"] = {file.name: file_digest(file) for file in source.tokenizer_files}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
