"""A sweep of the real core that takes seconds: a CLIP of 32 features, and images of noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGES = {"train": 12, "test": 4, "shifts/dark": 4}
"""Folder to images of each class."""
OFTEN = '''"""Checkpoints at every epoch, not every five minutes."""

import carft_sweep.carft_core.training.loop

carft_sweep.carft_core.training.loop.CHECKPOINT_EVERY = 0.0
'''
_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "patch_size": 8,
        "head_width": 16,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


def data_of(folder: Path) -> dict[str, Any]:
    """Write an image folder of two classes of coloured noise; return the sweep's `data`."""
    root, rng = folder / "images", np.random.default_rng(0)
    for name, count in IMAGES.items():
        for label, colour in {"red": (200, 60, 60), "blue": (60, 60, 200)}.items():
            place = root / name / label
            place.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = np.array(colour) + rng.integers(-55, 55, (36, 36, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    return {"family": "image_folder", "root": str(root), "val_fraction": 0.25}


def sweep_files(folder: Path) -> Iterator[dict[str, Any]]:
    """Write model and data; yield the kinds of sweep, as the content of their files."""
    model = folder / "clip"
    if not model.exists():
        _write_clip(model)
    often = folder / "often.py"
    often.write_text(OFTEN)
    yield {
        "name": "real",
        "import": [str(often)],
        "method": "grid",
        "parameters": {"algorithm.kl_weight": {"values": [0.5, 1.0, 1.5, 2.0, 2.5]}},
        "seeds": [0, 1],
        "baselines": ["zero_shot", "fine_tune"],
        "trial": {
            "model": {"name": str(model)},
            "data": data_of(folder),
            "prompts": {"classes": "simple", "contexts": "simple"},
            "algorithm": {"name": "car_ft"},
            "optim": {"lr": 0.0003, "epochs": 4, "batch_size": 4},
            "merges": [{"name": "wise_ft", "alphas": [0.5]}],
            "device": "cpu",
        },
    }


def _write_clip(folder: Path) -> None:
    """As open_clip writes a model for the hub."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**_CLIP)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": _CLIP}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
