"""The teacher: the frozen zero-shot CLIP that a run starts from and is compared with."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_core.clip import ImageClassifier, OpenedClip
from carft_core.prompts import TemplateSet


class Teacher:
    """The zero-shot classifier and its text features; nothing here ever changes.

    `w_cls` [C, d] and `w_ctx` [K, d] have unit-norm rows; `scale` is CLIP's logit scale.
    """

    def __init__(
        self,
        clip: OpenedClip,
        w_cls: Tensor,
        w_ctx: Tensor,
        contexts: TemplateSet,
        device: torch.device,
    ) -> None:
        self.scale = clip.logit_scale
        self.contexts = contexts
        self.clip_digest = clip.digest
        self.w_cls = w_cls.to(device)
        self.w_ctx = w_ctx.to(device)
        self._fixed = frozenset(clip.fixed)
        self.classifier = zero_shot_classifier(clip, w_cls).to(device)
        self.classifier.requires_grad_(False).eval()

    def new_classifier(self) -> ImageClassifier:
        """A trainable copy of the zero-shot classifier: encoder and head `scale * w_cls`."""
        classifier = copy.deepcopy(self.classifier)
        for name, parameter in classifier.named_parameters():
            parameter.requires_grad_(name not in self._fixed)
        return classifier

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Unit-norm features [B, d] of normalised views [B, 3, S, S]."""
        with _student_arithmetic():
            return self.classifier.features(images)

    def context_log_probs(self, features: Tensor, scale: float | None = None) -> Tensor:
        """log p_ctx [B, K] of unit-norm features [B, d], in fp32 whatever the precision."""
        scale = self.scale if scale is None else scale
        with torch.autocast(features.device.type, enabled=False):
            return F.log_softmax(scale * features.float() @ self.w_ctx.T, dim=1)


@contextlib.contextmanager
def _student_arithmetic() -> Iterator[None]:
    """Attention as it is computed under a gradient.

    Without one, PyTorch takes a fused path that rounds differently; the teacher then would differ
    from a student of equal weights, and the KL would not be 0 at step 0.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def zero_shot_classifier(clip: OpenedClip, w_cls: Tensor) -> ImageClassifier:
    """The image tower with a head of rows `logit_scale * w_cls[c]` and no bias."""
    classes, width = w_cls.shape
    head = nn.Linear(width, classes, bias=False)
    with torch.no_grad():
        head.weight.copy_(clip.logit_scale * w_cls)
    visual = clip.model.visual
    if not isinstance(visual, nn.Module):
        raise TypeError(f"{clip.name} has no image tower `visual`")
    return ImageClassifier(copy.deepcopy(visual), head)
