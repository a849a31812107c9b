"""TaskRes: the frozen CLIP, with a learnt offset to each class's text feature."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep import ALGORITHMS, Classifier, FineTune, Group, OptimConfig, Teacher, decay_groups


class Residual(Classifier):
    """logits = s f norm(W_cls + alpha R)'"""

    def __init__(self, teacher: Teacher, alpha: float) -> None:
        super().__init__()
        self.zero_shot, self.scale, self.alpha = teacher.new_classifier(), teacher.scale, alpha
        self.register_buffer("w_cls", teacher.w_cls.clone())
        self.offset = nn.Parameter(torch.zeros_like(teacher.w_cls))

    def features(self, images: Tensor) -> Tensor:
        return self.zero_shot.features(images)

    def logits(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            rows = F.normalize(self.w_cls + self.alpha * self.offset, dim=1)
            return self.scale * features @ rows.T


@ALGORITHMS.register
class TaskRes(FineTune):
    """Source: Yu et al. 2023, arXiv 2211.10277."""

    name: ClassVar[str] = "task_res"
    summary: ClassVar[str] = "The frozen CLIP with a learnt offset to each text feature"
    keeps_shape: ClassVar[bool] = False  # its tensors are not the zero-shot classifier's
    starts_at_zero_shot: ClassVar[bool] = False  # but for rounding

    alpha: Annotated[float, Field(gt=0)] = 0.5

    def build(self, teacher: Teacher) -> Residual:
        return Residual(teacher, self.alpha)

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        return decay_groups([("offset", model.offset)], optim)
