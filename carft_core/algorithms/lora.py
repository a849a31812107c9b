"""LoRA: low-rank changes of the image tower's weights, trained in place of the weights."""

from __future__ import annotations

import copy
import math
from typing import ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from carft_sweep.carft_core.algorithms.base import Wrapper
from carft_sweep.carft_core.config.fields import Positive, PositiveInt
from carft_sweep.carft_core.models.classifier import Classifier, towers_in
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import stem_and_blocks


class LowRank(nn.Module):
    """A parametrization of a matrix W [m, n]: `W + scale * B A` with A [rank, n], B [m, rank]."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.scale = scale
        self.down = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return `W + scale * B A` of the matrix W, computed in float32 under autocast too."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.up @ self.down).view_as(weight)


class Lora(Wrapper):
    """Any algorithm, with `W + alpha / rank * B A` in place of each matrix W of the image tower.

    A and B train, W does not, nor does the rest of the tower; B is 0 at the start. The matrices are
    those in the blocks: of attention (one for query, key and value), of the MLPs, and of 1x1
    convolutions. What else the algorithm trains, such as the head, trains as without LoRA. The
    result has the sums as its weights: it is merged and exported like that of fine-tuning.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685),
    section 4.1, which leaves the MLPs as they are; the defaults are those of the library peft,
    which is not used: in torch's attention its version 0.21 adds the output matrix's change twice.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "Low-rank changes of the image tower, trained by another algorithm"

    rank: PositiveInt = 8
    """The rank of each change B A."""
    alpha: Positive = 8.0
    """Each change is multiplied by `alpha / rank`."""

    @model_validator(mode="after")
    def _of_keeps_its_tower(self) -> Self:
        if self.of.needs_plain_tower:
            raise ValueError(f"of: {self.of.name} needs the tower's own weights, or trains none")
        if isinstance(self.of, Wrapper):
            raise ValueError(f"of: {self.of.name} wraps an algorithm; let it wrap lora instead")
        return self

    def build(self, teacher: Teacher) -> nn.Module:
        """Return the wrapped algorithm's module, with low-rank changes in its image tower. Raises
        RequestError for an unknown architecture."""
        model, drawn = super().build(teacher), dict[object, LowRank]()
        for tower in towers_in(model, teacher.classifier.visual):
            trains = any(weight.requires_grad for weight in tower.parameters())
            tower.requires_grad_(False)
            layers = [part for block in stem_and_blocks(tower)[1] for part in block.modules()]
            for place, layer in enumerate(layers):
                for name, weight in [*layer.named_parameters(recurse=False)]:
                    if weight.ndim >= 2 and weight[0, 0].numel() == 1:
                        key = (place, name, weight.shape)
                        if key not in drawn:
                            drawn[key] = LowRank(weight, self.rank, self.alpha / self.rank)
                        # A copy, so that an average of the tower begins where it does.
                        change = copy.deepcopy(drawn[key]).requires_grad_(trains)
                        parametrize.register_parametrization(layer, name, change)
        return model

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        """Return the wrapped algorithm's classifier with the changes added to the weights."""
        classifier = copy.deepcopy(super().classifier(model, teacher))
        for layer in [*filter(parametrize.is_parametrized, classifier.modules())]:
            # Not remove_parametrizations: a copy shares its class with what trains.
            sums = {name: getattr(layer, name) for name in layer.parametrizations}  # type: ignore[union-attr]
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            for name, weight in sums.items():
                layer.register_parameter(name, nn.Parameter(weight.detach(), requires_grad=False))
        return classifier
