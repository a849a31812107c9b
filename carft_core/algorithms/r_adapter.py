"""R-Adapter: linear adapters in both towers of a frozen CLIP, which fold into its weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Algorithm, Batch, Loss
from carft_sweep.carft_core.config.fields import NonNegative, Share
from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.contrastive import averaged_clips, contrastive_clip
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import residual_blocks


class Adapter(nn.Module):
    """x + scale * F x, whose second term is dropped at random for some images in training."""

    def __init__(self, width: int, drop: float, device: torch.device | None = None) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(width, width, device=device))
        self.scale = nn.Parameter(torch.tensor(0.1, device=device))
        # timm takes a second to import, and who plans a sweep does without.
        from timm.layers.drop import DropPath

        self.drop = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the scaled linear map of x."""
        return x + self.scale * self.drop(F.linear(x, self.matrix))  # type: ignore[no-any-return]

    @torch.no_grad()
    def fold_into(self, linear: nn.Linear) -> None:
        """Merge the adapter into the linear layer before it, which then does the work of both."""
        for tensor in (linear.weight, linear.bias):
            tensor.add_(self.scale * self.matrix @ tensor)


class RAdapter(Algorithm):
    """Adapters after attention and MLP of each block of both towers, all else frozen.

    An adapter is x + a F x, with F [width, width] from zero and the scalar a from 0.1 on. Of a
    batch's image features f_i and caption features t_j, with CLIP's scale s frozen, the logits are

        L_ij = s (f_i . t_j + margin [caption j is of another class than image i])

    and the loss is the mean of the cross-entropies of L and of its transpose, with targets in which
    the captions of the image's class share 1 - smoothing, and the others share smoothing. The
    classifier is the moving average of the adapters, folded into the image tower: W becomes
    (I + a F) W. Its authors report half of the change, (I + a F / 2) W, which is `wise_ft` at 0.5
    of this tower; their head is that of the text tower at half of its change.

    Source: Kim et al. 2024, "Efficient and Versatile Robust Fine-Tuning of Zero-shot Models"
    (arXiv 2408.05749), and tjddus9597/R-Adapter-ECCV2024, whose ImageNet command, with
    `--adapter=128,128`, trains adapters of full rank as here, at 5e-4 without decay. Its drop path
    leaves out positions of tokens for the whole batch, here an adapter for some images.
    """

    name: ClassVar[str] = "r_adapter"
    summary: ClassVar[str] = "Linear adapters in both towers, folded into the weights (ViT)"
    couples_items: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"text", "blocks"})
    needs_plain_tower: ClassVar[bool] = True
    copies: ClassVar[int] = 2

    drop: Share = 0.2
    """The probability with which an adapter is left out for an image in training."""
    decay: Share = 0.999
    """How much of the moving average a step leaves."""
    margin: NonNegative = 0.05
    """What is added to the similarity of an image and a caption of another class."""
    smoothing: Share = 0.02
    """The part of a target for captions of other classes; `optim.label_smoothing` is not used."""

    def build(self, teacher: Teacher) -> Averaged:
        """Return a trainable copy of the teacher's CLIP with adapters, and its average."""
        clip = contrastive_clip(teacher).requires_grad_(False)
        for block in [*residual_blocks(clip.visual), *residual_blocks(clip.clip)]:
            for name in ("ls_1", "ls_2"):
                adapter = Adapter(len(block.ln_1.weight), self.drop, teacher.device)
                setattr(block, name, nn.Sequential(adapter, getattr(block, name)))
        return Averaged(clip)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the mean of the cross-entropies of captions given images and the reverse."""
        clip, _ = averaged_clips(model)
        images, texts = batch.pairs(clip)
        own = (batch.labels[:, None] == batch.labels).float()
        others = (1 - own).sum(dim=1, keepdim=True).clamp(min=1)
        shared = (1 - self.smoothing) * own / own.sum(dim=1, keepdim=True)
        shared = shared + self.smoothing * (1 - own) / others
        with torch.autocast(images.device.type, enabled=False):
            logits = clip.scale * (images @ texts.T + self.margin * (1 - own))
            to_text, to_image = (F.cross_entropy(scores, shared) for scores in (logits, logits.T))
        return (to_text + to_image) / 2, {"image_to_text": to_text, "text_to_image": to_image}

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Update the moving average of the adapters."""
        built(model, Averaged).update(self.decay)

    def classifier(self, model: nn.Module, teacher: Teacher) -> ImageClassifier:
        """Return the image tower with averaged adapters folded in, and the text tower's head."""
        _, average = averaged_clips(model)
        visual = teacher.new_classifier().visual
        for own, block in zip(*map(residual_blocks, (average.visual, visual)), strict=True):
            own.ls_1[0].fold_into(block.attn.out_proj)
            own.ls_2[0].fold_into(block.mlp.c_proj)
        return ImageClassifier(visual, average.classifier(teacher).head)
