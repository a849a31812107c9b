"""The layers of each kind of image tower."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.classifier import tower_outputs
from carft_sweep.carft_core.models.towers import outputs_by_depth, quarters

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
TIMM = {"timm_pool": "", "timm_proj": "linear", "image_size": 64}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "layers": 8, "width": 32, "head_width": 16, "patch_size": 8},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "convnext": {**TIMM, "timm_model_name": "test_convnext"},
    "timm_vit": {**TIMM, "timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"},
}
TOKENS = {
    "vit": [17] * 5,
    "resnet": [256, 256, 64, 16, 4],
    "convnext": [256, 256, 64, 16, 4],
    "timm_vit": [101] * 5,
}


@pytest.mark.parametrize("name", TOWERS)
def test_the_outputs_of_the_layers_are_those_that_the_tower_itself_passes_on(name: str) -> None:
    torch.manual_seed(0)
    clip = open_clip.CLIP(embed_dim=32, vision_cfg=TOWERS[name], text_cfg=TEXT).eval()
    side = TOWERS[name]["image_size"]
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        outputs, tokens = outputs_by_depth(clip.visual, images)
        torch.testing.assert_close(outputs, tower_outputs(clip.visual, images))
        shown = clip.visual.forward_intermediates(images, intermediates_only=True)
    assert [output.shape[1] for output in tokens] == TOKENS[name][: len(tokens)]
    last = shown["image_intermediates"][-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[-1][:, -last.shape[1] :], last)
    assert not any(module._forward_hooks for module in clip.modules())


def test_a_tower_with_other_layers_is_refused() -> None:
    with pytest.raises(RequestError, match="the layers of its image tower"):
        quarters(nn.Sequential(nn.Conv2d(3, 8, 4)))
