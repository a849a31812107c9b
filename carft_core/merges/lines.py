"""LiNeS: WiSE-FT with a weight for each layer, which grows with depth."""

from __future__ import annotations

import copy
from typing import ClassVar

from pydantic import field_validator
from torch import nn

from carft_sweep.carft_core.merges.base import Line, MergePoint, between
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import stem_and_blocks


class Lines(Line):
    """WiSE-FT layer by layer: `(1 - a_l) * zero_shot + a_l * tuned` in block l = 1, ..., L, with

        a_l = alpha + (1 - alpha) * (l - 1) / (L - 1)

    so that shallow layers stay near the zero-shot model and the last block is the tuned one. What
    lies in no block of the image tower (patch embedding, norms, projection) has the weight alpha;
    the head is the tuned model's. Blocks are a ViT's, or the stages of a convolutional network.

    Source: Wang et al. 2024, "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances
    Model Merging" (arXiv 2410.17146), its layer scaling with beta = 1 - alpha, which wang-kee/LiNeS
    uses for a single fine-tuned model; there the head is the zero-shot one in training as well.
    """

    name: ClassVar[str] = "lines"
    summary: ClassVar[str] = "Weight interpolation that keeps shallow layers near zero-shot"

    @field_validator("alphas")
    @classmethod
    def _above_zero(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if 0 in alphas:
            raise ValueError("alphas must be above 0: at 0 this line is not the zero-shot model")
        return alphas

    def model(self, point: MergePoint, teacher: Teacher, tuned: Classifier) -> Classifier:
        """Return the tuned classifier with interpolated layers; at alpha 1 the tuned one itself.
        Raises RequestError for an image tower whose blocks are not known."""
        alpha = point.values["alpha"]
        if alpha == 1:
            return tuned
        merged = copy.deepcopy(tuned)
        before, state = teacher.classifier.state_dict(), merged.state_dict()
        depths = block_depths(teacher.classifier.visual)
        for name, after in state.items():
            if name.startswith("visual.") and after.is_floating_point():
                share = alpha + (1 - alpha) * depths.get(name, 0.0)
                state[name] = between(before[name].to(after.device), after, share)
        merged.load_state_dict(state)
        return merged


def block_depths(visual: nn.Module) -> dict[str, float]:
    """Return the depth of each tensor in a block of the image tower, from 0 in the first block to 1
    in the last, by its name in an ImageClassifier."""
    _, blocks = stem_and_blocks(visual)
    names = {module: name for name, module in visual.named_modules()}
    return {
        f"visual.{names[block]}.{key}": number / max(1, len(blocks) - 1)
        for number, block in enumerate(blocks)
        for key in block.state_dict()
    }
