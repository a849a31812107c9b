"""L2-SP: fine-tuning with a penalty on the distance to the zero-shot weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss, penalised
from carft_sweep.carft_core.config.fields import NonNegative
from carft_sweep.carft_core.models.teacher import Teacher


class L2Sp(Algorithm):
    """Fine-tuning with CE + alpha / 2 * |w - w0|^2, w0 the zero-shot weights of the image tower.

    The head is left free. The paper adds beta / 2 * |v|^2 for the weights v of a new head, which is
    weight decay; a head here starts at the zero-shot one. In the paper the penalty replaces the
    tower's weight decay; here `optim.weight_decay` acts besides.

    Source: Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks" (arXiv 1802.01483), the penalty L2-SP. The default is what omegafragger/ldifs_code
    uses for CLIP, 0.5 there, where the factor 1/2 is left out.
    """

    name: ClassVar[str] = "l2_sp"
    summary: ClassVar[str] = "Fine-tuning with a penalty on the distance to the zero-shot weights"
    needs_plain_tower: ClassVar[bool] = True

    alpha: NonNegative = 1.0
    """The weight of the penalty. At 0 it is logged and trains nothing."""

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return cross-entropy plus the penalty; the logged `distance` is |w - w0|^2."""
        cross_entropy = batch.cross_entropy(model(batch.images))
        start = dict(teacher.classifier.named_parameters())

        def squared_distance() -> Tensor:
            squares = [
                (parameter - start[name]).square().sum()
                for name, parameter in model.named_parameters()
                if name.startswith("visual.")
            ]
            return torch.stack(squares).sum()

        total, distance = penalised(cross_entropy, self.alpha / 2, squared_distance)
        return total, {"cross_entropy": cross_entropy, "distance": distance}
