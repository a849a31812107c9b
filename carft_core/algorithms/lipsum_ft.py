"""Lipsum-FT: fine-tuning that keeps the energies between images and random texts."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative, PositiveInt
from carft_sweep.carft_core.models.classifier import Classifier, built
from carft_sweep.carft_core.models.teacher import Teacher


class LipsumFt(Algorithm):
    """Fine-tuning with CE + gap_weight * the energy gap of random texts.

    With t_1, ..., t_M the zero-shot text tower's unit-norm features of M texts of random tokens,
    drawn anew each step, f an image's unit-norm feature and s CLIP's own frozen logit scale, the
    gap is the mean over the batch of

        1 / (2 M) * sum over m of (s f(x; tuned)' t_m - s f(x; zero-shot)' t_m)^2

    of the same view. A text is `tokens` tokens, each one of the vocabulary's with the same
    probability, between the marks of start and end.

    Source: Nam et al. 2024, "Lipsum-FT: Robust Fine-Tuning of Zero-Shot Models Using Random Text
    Guidance" (arXiv 2404.00860), the energy gap of section 4, and cs-giung/lipsum-ft. The authors
    keep the best of every 1000 steps by their ID test set; here the last step is the result.
    """

    name: ClassVar[str] = "lipsum_ft"
    summary: ClassVar[str] = "Fine-tuning that keeps the energies between images and random texts"
    uses: ClassVar[frozenset[str]] = frozenset({"text", "random_texts"})

    gap_weight: NonNegative = 1.0
    """The weight of the gap, the paper's lambda. At 0 it is logged and trains nothing."""
    texts: PositiveInt = 80
    """How many random texts a step has."""
    tokens: Annotated[int, Field(ge=1, le=75)] = 8
    """How many tokens a random text has, without the marks; the text tower must read them all."""

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return cross-entropy plus the weighted gap. Raises RequestError for a text tower with
        another tokenizer than CLIP's own, or that reads fewer tokens."""
        model = built(model, Classifier)
        features = model.features(batch.images)
        cross_entropy = batch.cross_entropy(model.logits(features))
        tokens = teacher.clip.random_texts(self.texts, self.tokens, batch.generator())
        # Outside of energy_gap, where a tower would be computed in float32.
        texts, frozen = teacher.text_features(tokens), batch.zero_shot()

        def energy_gap() -> Tensor:
            with torch.autocast(features.device.type, enabled=False):
                energies = teacher.scale * (features - frozen) @ texts.T
            return energies.square().mean() / 2

        total, gap = penalised(cross_entropy, self.gap_weight, energy_gap)
        return total, {"cross_entropy": cross_entropy, "energy_gap": gap}
