"""One function opens any CLIP: built in, by open_clip's name, from the hub, or from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torch.nn import functional as F

from carft_core.clip_source import ModelSource, find_model
from carft_core.clip_weights import file_digest, fit, read_state
from carft_core.data.base import Transform
from carft_core.errors import RequestError

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


def open_model(
    name: str, pretrained: str | None = None, *, cache: Path | None = None
) -> OpenedClip:
    """Open a CLIP.

    `name` and `pretrained` are one of: `builtin`; an open_clip name with a tag or with the path of
    a checkpoint file; `hf-hub:org/model`; a folder with `open_clip_config.json` and weights.
    Digests of files are kept under `cache`. Global random state is left as it was. Raises
    RequestError for whatever of these cannot be found, read, downloaded, or fitted together.
    """
    source = find_model(name, pretrained)
    model = _built(source)
    fit(model, read_state(source.weights), name=name, path=source.weights)
    transform = _transform(model, source)
    fixed = frozenset(key for key, value in model.named_parameters() if not value.requires_grad)
    model = model.float().eval().requires_grad_(False)
    return OpenedClip(name, model, _tokenizer(source), transform, _digest(source, cache), fixed)


def weights_digest(name: str, pretrained: str | None = None, *, cache: Path | None = None) -> str:
    """`open_model(...).digest` without building the model. Raises RequestError likewise."""
    return _digest(find_model(name, pretrained), cache)


class ImageClassifier(nn.Module):
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

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of normalised images [B, 3, S, S]."""
        return self.logits(self.features(images))


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


def _digest(source: ModelSource, cache: Path | None) -> str:
    parts = {
        "architecture": dict(source.architecture),
        "preprocess": dict(source.preprocess),
        "weights": file_digest(source.weights, cache),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
