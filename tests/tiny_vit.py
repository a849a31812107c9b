"""A CLIP with random weights and a ViT, which opens in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""32 pixels, patches of 8, 32 features."""


def write_clip(folder: Path, config: dict[str, Any] = TINY_CONFIG) -> Path:
    """Write a folder as open_clip writes one for the hub, config and safetensors; return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
