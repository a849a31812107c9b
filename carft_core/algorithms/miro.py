"""MIRO: fine-tuning that keeps the information of several layers about the zero-shot model's."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative, Positive
from carft_sweep.carft_core.models.classifier import Classifier, ImageClassifier, built
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import outputs_by_depth
from carft_sweep.carft_core.training.optim import Group, OptimConfig, decay_groups

START, LEAST = 0.1, 1e-5
"""The variances at the start, and what they stay above."""


class WithVariances(nn.Module):
    """A classifier, and a trainable variance for each channel of some layers."""

    def __init__(self, classifier: ImageClassifier, channels: list[int]) -> None:
        super().__init__()
        self.classifier = classifier
        raw = math.log(math.expm1(START - LEAST))  # softplus of it is START - LEAST
        self.raw = nn.ParameterList(torch.full((count,), raw) for count in channels)

    def variances(self) -> list[Tensor]:
        """Return the variances of the channels [C] of each layer."""
        return [F.softplus(raw) + LEAST for raw in self.raw]


class Miro(Algorithm):
    """Mutual information regularisation with oracle: CE + information_weight * R.

    With h_l [B, T, C] the output of a layer l as T tokens of C channels, and v_l [C] variances that
    train, at rate_scale times the learning rate,

        R = sum over layers of mean over images, tokens and channels of
            ((h_l(x; tuned) - h_l(x; zero-shot))^2 / v_l + log v_l) / 2

    which bounds the information that the tuned layers keep of the zero-shot model's. The layers are
    those of LDIFS.

    Source: Cha et al. 2022, "Domain Generalization by Mutual-Information Regularization with
    Pre-trained Models" (arXiv 2203.10789), equation 3, and kakaobrain/miro. There a ViT's first
    layer is the cut into patches, without the class token; the head starts at random, and Adam
    without decay trains at 3e-5 or 1e-5 (its README; DomainBed has 5e-5 by default).
    """

    name: ClassVar[str] = "miro"
    summary: ClassVar[str] = "Fine-tuning that keeps several layers' information of the start"
    uses: ClassVar[frozenset[str]] = frozenset({"layers"})

    information_weight: NonNegative = 0.1
    """The weight of R, the paper's lambda; its search found 0.01 for some data. At 0 it is logged
    and trains nothing."""
    rate_scale: Positive = 10.0
    """By what factor the variances' learning rate is larger than that of the weights."""

    def build(self, teacher: Teacher) -> WithVariances:
        """Return a trainable copy of the zero-shot classifier, with trainable variances."""
        classifier, side = teacher.new_classifier(), teacher.transform.size
        with torch.no_grad():
            blank = torch.zeros(1, 3, side, side, device=teacher.device)
            _, layers = outputs_by_depth(teacher.classifier.visual, blank)
        return WithVariances(classifier, [layer.shape[-1] for layer in layers]).to(teacher.device)

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        """Return the classifier's parameters, and the variances with a larger rate."""
        model = built(model, WithVariances)
        scaled = decay_groups(model.raw.named_parameters(), optim, lr_scale=self.rate_scale)
        return [*decay_groups(model.classifier.named_parameters(), optim), *scaled]

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return cross-entropy plus the weighted R of the class's formula. Raises RequestError for
        a tower whose layers are not known."""
        model = built(model, WithVariances)
        with torch.no_grad():
            _, before = outputs_by_depth(teacher.classifier.visual, batch.images)
        outputs, after = outputs_by_depth(model.classifier.visual, batch.images)
        logits = model.classifier.logits(F.normalize(outputs, dim=-1))

        def information() -> Tensor:
            terms = [
                ((one - two).square() / variance + variance.log()).mean() / 2
                for one, two, variance in zip(after, before, model.variances(), strict=True)
            ]
            return torch.stack(terms).sum()

        cross_entropy = batch.cross_entropy(logits)
        total, value = penalised(cross_entropy, self.information_weight, information)
        return total, {"cross_entropy": cross_entropy, "information": value}

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        """Return the classifier without the variances."""
        return built(model, WithVariances).classifier
