"""Classifiers of images, which are evaluated: the base class, and an image tower with a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

T = TypeVar("T")


class Classifier(nn.Module):
    """A model that is evaluated: it maps images to features [B, d], and these to logits [B, C].

    Whatever an algorithm or a merge returns derives from it.
    """

    clip_features: bool = True
    """Whether features lie in CLIP's own space, where contexts and other heads are measured."""

    @property
    def parts(self) -> tuple[Classifier, ...]:
        """The classifiers whose concatenated features are this classifier's; by default itself. A
        merge of several names them, so that each encodes an image once for all points."""
        return (self,)

    def features(self, images: Tensor) -> Tensor:
        """Return unit-norm float32 features [B, d] of normalised images [B, 3, S, S]."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """Return float32 logits [B, C] of `features` [B, d]. When a split is measured, the features
        are those of all its images."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, C] of normalised images [B, 3, S, S]."""
        return self.logits(self.features(images))


class ImageClassifier(Classifier):
    """An image tower and a linear head without bias on its unit-norm features.

    The head's rows are `logit_scale * W_cls[c]` at the start; its state dict is what merges
    interpolate.
    """

    def __init__(self, visual: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.visual = visual
        self.head = head

    def embed(self, images: Tensor) -> Tensor:
        """Return the tower's float32 outputs [B, d], before normalisation."""
        return tower_outputs(self.visual, images)

    def features(self, images: Tensor) -> Tensor:
        """Return unit-norm float32 features [B, d] of normalised images [B, 3, S, S]. float32 under
        autocast too: in bf16 a norm is off by up to 0.4 %, and every logit with it."""
        return F.normalize(self.embed(images), dim=-1)

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits [B, C] of unit-norm features [B, d], in float32 as `features`."""
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.head(features)
        return out


def built(model: object, kind: type[T]) -> T:
    """Return `model`, what `build` made, typed as `kind`. Raises TypeError for another type."""
    if not isinstance(model, kind):
        raise TypeError(f"the algorithm trains {kind.__name__}, not {type(model).__name__}")
    return model


def towers_in(model: nn.Module, like: nn.Module) -> list[nn.Module]:
    """Return the modules within `model` of the same type as `like`, an image tower."""
    return [part for part in model.modules() if type(part) is type(like)]


def tower_outputs(visual: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Return the float32 outputs [B, d] of an image tower of open_clip for images [B, 3, S, S]."""
    out = visual(images)
    if isinstance(out, (tuple, list)):
        out = out[0]  # Towers that also return tokens (CoCa) return the pooled feature first.
    pooled: Tensor = out.float()
    return pooled


def linear_head(rows: Tensor) -> nn.Linear:
    """Return a head without bias whose weight is `rows` [C, d]."""
    classes, width = rows.shape
    head = nn.Linear(width, classes, bias=False, device=rows.device)
    with torch.no_grad():
        head.weight.copy_(rows)
    return head
