"""AutoFT's objective: nine losses, whose weights a search chooses by validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.contrastive import (
    ContrastiveClip,
    contrastive_clip,
    contrastive_loss,
)
from carft_sweep.carft_core.models.teacher import Teacher


class HeadedClip(nn.Module):
    """A trainable CLIP, and a trainable linear head on its image tower."""

    def __init__(self, clip: ContrastiveClip, head: nn.Linear) -> None:
        super().__init__()
        self.clip, self.head = clip, head


class AutoFt(Algorithm):
    """Cross-entropy and eight weighted terms, of logits z [B, C], features and weights w.

        hinge        mean over images of sum over c != y of max(0, 1 + z_c - z_y)
        entropy      mean entropy of softmax(z)
        confidence   the same mean, in which images that are classified right count 0
        contrastive  FLYP's loss of both towers and captions
        l1, l2       mean |w| and w^2 over the weights of image tower and head
        l1_start, l2_start   likewise of w - w_0, the zero-shot weights

    AutoFT is the search for the terms' weights, the rate and the decay by OOD validation: see
    `sweeps/autoft.yaml`. The defaults here are the middle of the range that it searches.

    Source: Choi et al. 2024, "AutoFT: Learning an Objective for Robust Fine-Tuning" (arXiv
    2401.10220), section 4, and its code. There the last four cover the text tower too, and the seed
    is searched as well, while here a trial's value is a mean over seeds.
    """

    name: ClassVar[str] = "autoft"
    summary: ClassVar[str] = "Nine losses whose weights a search chooses, as AutoFT does"
    couples_items: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"text"})
    needs_plain_tower: ClassVar[bool] = True

    hinge_weight: NonNegative = 0.03
    """The weight of the hinge loss."""
    entropy_weight: NonNegative = 0.03
    """The weight of the mean entropy of the predicted distributions."""
    confidence_weight: NonNegative = 0.03
    """The weight of the mean entropy in which rightly classified images count 0."""
    contrastive_weight: NonNegative = 0.03
    """The weight of FLYP's loss."""
    l1_weight: NonNegative = 0.03
    """The weight of the model's mean absolute weight."""
    l2_weight: NonNegative = 0.03
    """The weight of the model's mean squared weight."""
    l1_start_weight: NonNegative = 0.03
    """The weight of the mean absolute change from the zero-shot weights."""
    l2_start_weight: NonNegative = 0.03
    """The weight of the mean squared change from the zero-shot weights."""

    def build(self, teacher: Teacher) -> HeadedClip:
        """Return a trainable copy of the teacher's CLIP, and of its head."""
        return HeadedClip(contrastive_clip(teacher), teacher.new_classifier().head)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the weighted sum, and each term to log; a term of weight 0 trains nothing."""
        model = built(model, HeadedClip)
        clip, head = model.clip, model.head
        images, texts = batch.pairs(clip)
        with torch.autocast(images.device.type, enabled=False):
            logits = head(images)
            cross_entropy = batch.cross_entropy(logits)
            logarithms = logits.log_softmax(dim=1)
            entropies = -(logarithms.exp() * logarithms).sum(dim=1)
            own = logits.gather(1, batch.labels[:, None])
            wrong = (logits.argmax(dim=1) != batch.labels).float()
        start = dict(teacher.classifier.named_parameters())
        pairs: list[tuple[Tensor, Tensor]] = [(head.weight, start["head.weight"])]
        pairs += [(w, start[f"visual.{name}"]) for name, w in clip.visual.named_parameters()]
        count = sum(w.numel() for w, _ in pairs)

        def mean(size: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            return torch.stack([size(w, w_0).sum() for w, w_0 in pairs]).sum() / count

        scale, smoothing = clip.scale, batch.label_smoothing
        terms: Mapping[str, Callable[[], Tensor]] = {
            "hinge": lambda: (1 + logits - own).relu().sum(dim=1).mean() - 1,
            "entropy": entropies.mean,
            "confidence": lambda: (wrong * entropies).mean(),
            "contrastive": lambda: contrastive_loss(scale, images, texts, smoothing)[0],
            "l1": lambda: mean(lambda w, _: w.abs()),
            "l2": lambda: mean(lambda w, _: w.square()),
            "l1_start": lambda: mean(lambda w, w_0: (w - w_0).abs()),
            "l2_start": lambda: mean(lambda w, w_0: (w - w_0).square()),
        }
        total, logs = cross_entropy, {"cross_entropy": cross_entropy}
        for name, term in terms.items():
            total, logs[name] = penalised(total, getattr(self, f"{name}_weight"), term)
        return total, logs

    def classifier(self, model: nn.Module, teacher: Teacher) -> ImageClassifier:
        """Return the tuned image tower with the tuned head."""
        model = built(model, HeadedClip)
        return ImageClassifier(model.clip.visual, model.head)
