"""Mask-Fill: fine-tuning that keeps the outputs of images whose patches come from others."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative, PositiveInt, UnitInterval
from carft_sweep.carft_core.models.classifier import ImageClassifier, built, tower_outputs
from carft_sweep.carft_core.models.teacher import Teacher, evaluating
from carft_sweep.carft_core.models.towers import attention_maps
from carft_sweep.carft_core.training.numerics import to_device


class MaskFill(Algorithm):
    """Fine-tuning with CE + distillation_weight * the distance to zero-shot of masked images.

    With F(x; w) [B, d] the image tower's outputs before they are normalised, and x' the images in
    which masked cells show what another image of the batch has there,

        d = mean over images and dimensions of (F(x'; tuned) - F(x'; zero-shot))^2

    The random mask hides each cell of a grid with the probability `share`. The object mask hides
    those patches of a ViT whose relevance for the label, of at most 1, is above `threshold`:
    through its blocks, R <- R + mean over heads of (A * gradient of the label's logit by A)_+ R,
    and the relevance is the class token's row of R.

    Source: Xiao et al. 2023, "Masked Images Are Counterfactual Samples for Robust Fine-tuning"
    (arXiv 2303.03052), object mask with single-fill, and Coxy7/robust-finetuning, which has the
    relevance of Chefer et al. 2021 (arXiv 2103.15679) and these defaults.
    """

    name: ClassVar[str] = "mask_fill"
    summary: ClassVar[str] = "Fine-tuning that keeps the outputs of masked images"
    couples_items: ClassVar[bool] = True

    distillation_weight: NonNegative = 30.0
    """The weight of the distance. At 0 it is logged and trains nothing."""
    mask: Literal["random", "object"] = "random"
    """What is masked; the authors recommend `object`, which needs a ViT."""
    share: UnitInterval = 0.5
    """The probability with which the random mask hides a cell."""
    cells: PositiveInt = 7
    """How many cells a row of the random mask's grid has; 7 are a ViT-B/32's patches."""
    threshold: UnitInterval = 0.3
    """The relevance, relative to an image's greatest, from which the object mask hides a patch."""

    @property
    def uses(self) -> frozenset[str]:  # type: ignore[override]
        """The parts of a model that the method uses: attention maps for the object mask."""
        return frozenset({"attention"} if self.mask == "object" else ())

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return cross-entropy of the images plus the weighted distance of the masked ones."""
        model = built(model, ImageClassifier)
        images, generator = batch.images, batch.generator()
        others = to_device(torch.randperm(len(images), generator=generator), images.device)
        if self.mask == "random":
            draws = torch.rand(len(images), 1, self.cells, self.cells, generator=generator)
            mask = (to_device(draws, images.device) < self.share).float()
        else:
            size = batch.micro_batch or len(images)
            relevance_of = functools.partial(label_relevance, model)
            parts = map(relevance_of, images.split(size), batch.labels.split(size))
            relevance = torch.cat([*parts])
            mask = (relevance > self.threshold * relevance.amax(dim=(2, 3), keepdim=True)).float()
        is_masked = F.interpolate(mask, images.shape[2:], mode="nearest") > 0
        masked = torch.where(is_masked, images[others], images)
        with torch.no_grad():
            frozen = batch.in_parts(teacher.classifier.embed, masked)
        cross_entropy = batch.cross_entropy(model.logits(batch.in_parts(model.features, images)))
        total, distance = penalised(
            cross_entropy,
            self.distillation_weight,
            lambda: F.mse_loss(batch.in_parts(model.embed, masked), frozen),
        )
        return total, {"cross_entropy": cross_entropy, "distance": distance}


def label_relevance(model: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return the relevance [B, 1, h, w] of each image's patches for the logit of its label."""
    with torch.enable_grad(), evaluating(model), attention_maps(model.visual) as maps:
        outputs = tower_outputs(model.visual.forward, images)
        logits = model.logits(F.normalize(outputs, dim=-1))
        chosen = logits.gather(1, labels[:, None]).sum()
        maps = [*maps]  # a block that is computed again on the way back adds another
        gradients = torch.autograd.grad(chosen, maps)
    tokens = maps[0].shape[-1]
    relevance = torch.eye(tokens, device=images.device).expand(len(images), -1, -1)
    for attention, gradient in zip(maps, gradients, strict=True):
        weights = (attention.detach() * gradient).clamp(min=0).float().mean(dim=1)
        relevance = relevance + weights @ relevance
    side = round((tokens - 1) ** 0.5)
    return relevance[:, 0, 1:].reshape(-1, 1, side, side)
