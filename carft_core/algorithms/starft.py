"""StarFT: contrastive fine-tuning that keeps how images relate to texts of spurious contexts."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Batch, Contrastive, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative
from carft_sweep.carft_core.models.classifier import built
from carft_sweep.carft_core.models.contrastive import (
    ContrastiveClip,
    caption_tokens,
    contrastive_loss,
)
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.training.numerics import to_device

NEVER = -1e8
"""The logit of a text of the image's own class."""


class StarFt(Contrastive):
    """FLYP with a KL term that aligns the similarities to texts of spurious contexts.

    Beside its caption each image has a spurious text: a template of `prompts.contexts`, drawn for
    it, with the name of its class. With f and u the features of the images and of these texts, f_0
    and u_0 the zero-shot model's, s its scale, and columns of texts of the image's own class left
    out of both distributions,

        FLYP + star_weight (1 - (t + 1) / T) KL(softmax(s f_0 u_0') || softmax(s f u'))

    as a sum over the batch's texts and a mean over its images, in step t = 0, 1, ... of T.

    Source: Kim et al. 2025, "StarFT: Robust Fine-tuning of Zero-shot Models via Spuriosity
    Alignment" (arXiv 2505.13232), in the form of alinlab/StarFT, `--spurious-type star
    --diminishing`, with its ratio of 0.5. There the weight sinks by epoch, gradients are not
    clipped, and the contexts are backgrounds that a language model named, put around a caption.
    """

    name: ClassVar[str] = "starft"
    summary: ClassVar[str] = "FLYP that keeps similarities to texts of spurious contexts"
    uses: ClassVar[frozenset[str]] = frozenset({"text", "contexts"})

    star_weight: NonNegative = 0.5
    """The weight of the KL term at the start. At 0 it is logged and trains nothing: FLYP."""

    def build(self, teacher: Teacher) -> nn.Module:
        """Return a trainable copy of the teacher's CLIP, with the tokens of the spurious texts."""
        model = super().build(teacher)
        contexts = caption_tokens(teacher, teacher.contexts)
        model.register_buffer("contexts", contexts, persistent=False)
        return model

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the contrastive loss plus the weighted KL. Raises ValueError when the batch comes
        without the teacher."""
        clip, contexts = built(model, ContrastiveClip), model.contexts
        assert isinstance(contexts, Tensor)  # `build` has made it
        images, captions = batch.pairs(clip)
        total, logs = contrastive_loss(clip.scale, images, captions, batch.label_smoothing)
        # The first draw of the step is that of the captions.
        drawn = torch.randint(len(contexts), (2, len(batch.labels)), generator=batch.generator())[1]
        spurious = contexts[to_device(drawn, batch.labels.device), batch.labels]
        own = batch.labels[:, None] == batch.labels

        def similarities(images: Tensor, texts: Tensor) -> Tensor:
            with torch.autocast(images.device.type, enabled=False):
                logits = (teacher.scale * images @ texts.T).masked_fill(own, NEVER)
                return logits.log_softmax(dim=1)

        frozen = similarities(batch.zero_shot(), teacher.text_features(spurious))

        def divergence() -> Tensor:
            tuned = similarities(images, batch.in_parts(clip.text_features, spurious))
            return F.kl_div(tuned, frozen, reduction="batchmean", log_target=True)

        left = max(0.0, 1 - (batch.step + 1) / batch.steps)
        total, kl = penalised(total, self.star_weight * left, divergence)
        return total, {**logs, "spurious_kl": kl}
