"""FLYP: fine-tuning by the contrastive loss of the pre-training, both towers together."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss
from carft_sweep.carft_core.models.classifier import ImageClassifier, tower_outputs
from carft_sweep.carft_core.models.prompts import TEXTS_PER_BATCH, class_weights
from carft_sweep.carft_core.models.teacher import Teacher, evaluating, linear_head
from carft_sweep.carft_core.training.numerics import to_device


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
        visual = self.clip.visual
        assert isinstance(visual, nn.Module)
        return visual

    @property
    def scale(self) -> Tensor:
        """By what cosines are multiplied, a scalar; it trains as the towers do."""
        logarithm = self.clip.logit_scale
        assert isinstance(logarithm, Tensor)  # `OpenedClip.logit_scale` has looked
        return logarithm.exp()

    def image_features(self, images: Tensor) -> Tensor:
        """Return unit-norm float32 features [B, d] of normalised images [B, 3, S, S]."""
        return F.normalize(tower_outputs(self.visual, images), dim=-1)

    def text_features(self, tokens: Tensor) -> Tensor:
        """Return unit-norm float32 features [B, d] of tokens [B, L]."""
        out: Tensor = self.clip.encode_text(tokens)  # type: ignore[operator]
        return F.normalize(out.float(), dim=-1)

    @torch.no_grad()
    def head(self) -> nn.Linear:
        """Return the zero-shot head of the towers as they are, from all templates and classes."""
        parts = self.tokens.flatten(0, 1).split(TEXTS_PER_BATCH)
        texts = torch.cat([self.text_features(part) for part in parts])
        w_raw = texts.view(*self.tokens.shape[:2], -1)
        # On the CPU as the teacher's own: float64, in which the mean is taken, is not everywhere.
        return linear_head(float(self.scale) * class_weights(w_raw.cpu())).to(texts.device)


class Flyp(Algorithm):
    """Fine-tune like you pretrain: image and text tower by CLIP's own loss.

    Each image of a batch is paired with a caption: a template of `prompts.classes`, drawn for it,
    with the name of its class. With unit-norm features f of the B images and t of their captions
    and the scale s, which trains too, the loss is

        (CE(s f t', 1..B) + CE(s t f', 1..B)) / 2

    so another image of the same class in the batch counts as a negative, as in the authors' code.
    The classifier is the tuned image tower with a head rebuilt from the tuned text tower, of all
    templates, at every evaluation.

    Source: Goyal et al. 2023, "Finetune like you pretrain: Improved finetuning of zero-shot vision
    models" (arXiv 2212.00638), equation 1, and locuslab/FLYP. There an epoch draws as many of the
    pairs of image and template as there are images, here each image once; there gradients are not
    clipped (`optim.clip: null`), and the scale is not bounded, as here.
    """

    name: ClassVar[str] = "flyp"
    summary: ClassVar[str] = "Contrastive fine-tuning of both towers, with captions of the classes"
    couples_items: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"text"})

    def build(self, teacher: Teacher) -> nn.Module:
        """Return a trainable copy of the teacher's whole CLIP."""
        texts = list(teacher.classes.texts(teacher.class_names))
        shape = (len(teacher.classes.templates), len(teacher.class_names))
        tokens = teacher.clip.tokenizer(texts).view(*shape, -1)
        visual = teacher.new_classifier().visual
        clip = copy.deepcopy(teacher.clip.model)
        for name, parameter in clip.named_parameters():
            parameter.requires_grad_(name not in teacher.clip.fixed)
        return ContrastiveClip(clip, visual, tokens)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the symmetric cross-entropy; `optim.label_smoothing` smooths over the batch's
        pairs."""
        clip = _contrastive(model)
        drawn = torch.randint(len(clip.tokens), batch.labels.shape, generator=batch.generator())
        captions = clip.tokens[to_device(drawn, batch.labels.device), batch.labels]
        images = batch.in_parts(clip.image_features, batch.images)
        texts = batch.in_parts(clip.text_features, captions)
        with torch.autocast(images.device.type, enabled=False):
            logits = clip.scale * images @ texts.T
            pairs = torch.arange(len(logits), device=logits.device)
            to_text, to_image = (
                F.cross_entropy(direction, pairs, label_smoothing=batch.label_smoothing)
                for direction in (logits, logits.T)
            )
        logs = {"image_to_text": to_text, "text_to_image": to_image, "logit_scale": clip.scale}
        return (to_text + to_image) / 2, logs

    def classifier(self, model: nn.Module, teacher: Teacher) -> ImageClassifier:
        """Return the tuned image tower, and the head that the tuned text tower gives, in
        float32."""
        clip = _contrastive(model)
        with teacher.arithmetic(), evaluating(clip):
            return ImageClassifier(clip.visual, clip.head())


def _contrastive(model: nn.Module) -> ContrastiveClip:
    if not isinstance(model, ContrastiveClip):
        raise TypeError("flyp trains a whole CLIP")
    return model
