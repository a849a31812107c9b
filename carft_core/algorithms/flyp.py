"""FLYP: fine-tuning by the contrastive loss of the pre-training, both towers together."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from carft_sweep.carft_core.algorithms.base import Batch, Contrastive, Loss
from carft_sweep.carft_core.models.classifier import built
from carft_sweep.carft_core.models.contrastive import ContrastiveClip, contrastive_loss
from carft_sweep.carft_core.models.teacher import Teacher


class Flyp(Contrastive):
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

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the symmetric cross-entropy between images and captions of the batch;
        `optim.label_smoothing` smooths over the batch's pairs."""
        clip = built(model, ContrastiveClip)
        images, texts = batch.pairs(clip)
        return contrastive_loss(clip.scale, images, texts, batch.label_smoothing)
