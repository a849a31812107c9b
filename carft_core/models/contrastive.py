"""A whole CLIP that trains by the contrastive loss of its pre-training."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.classifier import ImageClassifier, built, tower_outputs
from carft_sweep.carft_core.models.prompts import (
    TEXTS_PER_BATCH,
    TemplateSet,
    class_weights,
    zero_shot_head,
)
from carft_sweep.carft_core.models.teacher import Teacher, evaluating
from carft_sweep.carft_core.models.towers import projection


class ContrastiveClip(nn.Module):
    """A whole CLIP that trains, with the tokens of every template and class."""

    tokens: Tensor
    """[K, C, L] int64; made anew from the teacher, so no part of the state."""

    def __init__(self, clip: nn.Module, visual: nn.Module, tokens: Tensor) -> None:
        super().__init__()
        clip.visual = visual
        self.clip = clip
        self.register_buffer("tokens", tokens, persistent=False)

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return built(self.clip.visual, nn.Module)

    @property
    def scale(self) -> Tensor:
        """The trained logit scale, a scalar."""
        return built(self.clip.logit_scale, Tensor).exp()

    def image_features(self, images: Tensor) -> Tensor:
        """Return unit-norm float32 features [B, d] of normalised images [B, 3, S, S]."""
        return F.normalize(tower_outputs(self.visual, images), dim=-1)

    def text_features(self, tokens: Tensor) -> Tensor:
        """Return unit-norm float32 features [B, d] of tokens [B, L]."""
        out: Tensor = self.clip.encode_text(tokens)  # type: ignore[operator]
        return F.normalize(out.float(), dim=-1)

    def crossing(self) -> Tensor:
        """Return the Frobenius norm of W_v W_t', the product of both towers' projections."""
        norm: Tensor = torch.linalg.matrix_norm(projection(self.visual) @ projection(self.clip).T)
        return norm

    @torch.no_grad()
    def head(self) -> nn.Linear:
        """Return the zero-shot head of the towers as they are, from all templates and classes."""
        parts = self.tokens.flatten(0, 1).split(TEXTS_PER_BATCH)
        texts = torch.cat([self.text_features(part) for part in parts])
        w_raw = texts.view(*self.tokens.shape[:2], -1)
        # On the CPU as the teacher's own: float64, in which the mean is taken, is not everywhere.
        return zero_shot_head(float(self.scale), class_weights(w_raw.cpu())).to(texts.device)

    def classifier(self, teacher: Teacher) -> ImageClassifier:
        """Return a float32 classifier: the image tower with the head that the text tower gives."""
        with teacher.arithmetic(), evaluating(self):
            return ImageClassifier(self.visual, self.head())


def contrastive_clip(teacher: Teacher) -> ContrastiveClip:
    """Return a trainable copy of the teacher's whole CLIP."""
    visual = teacher.new_classifier().visual
    clip = copy.deepcopy(teacher.clip.model)
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(name not in teacher.clip.fixed)
    return ContrastiveClip(clip, visual, caption_tokens(teacher, teacher.classes))


def caption_tokens(teacher: Teacher, templates: TemplateSet) -> Tensor:
    """Return tokens [K, C, L] of each template with each class."""
    texts = list(templates.texts(teacher.class_names))
    shape = (len(templates.templates), len(teacher.class_names))
    return teacher.clip.tokenizer(texts).view(*shape, -1)


def contrastive_loss(
    scale: Tensor, images: Tensor, texts: Tensor, smoothing: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return CLIP's symmetric cross-entropy of unit-norm features [B, d], in which an image's only
    positive is its own text, and the terms to log."""
    with torch.autocast(images.device.type, enabled=False):
        logits = scale * images @ texts.T
        pairs = torch.arange(len(logits), device=logits.device)
        to_text, to_image = (
            F.cross_entropy(direction, pairs, label_smoothing=smoothing)
            for direction in (logits, logits.T)
        )
    logs = {"image_to_text": to_text, "text_to_image": to_image, "logit_scale": scale}
    return (to_text + to_image) / 2, logs


def averaged_clips(model: nn.Module) -> tuple[ContrastiveClip, ContrastiveClip]:
    """Return the CLIP that trains, and its average. Raises TypeError when the module has none."""
    both = built(model, Averaged)
    return built(both.model, ContrastiveClip), built(both.average, ContrastiveClip)
