"""CAR-FT on a real architecture: ViT-B-32 from a checkpoint file in open_clip's layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch

from carft_core.config import TrialConfig
from carft_core.train import train


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A training checkpoint as open_clip's own script saves it; random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    path = tmp_path / "epoch_1.pt"
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 1, "name": "test", "state_dict": state}, path)
    return path


def test_car_ft_trains_vit_b_32_from_a_checkpoint_file(
    toy_config: Callable[..., TrialConfig], checkpoint: Path, tmp_path: Path
) -> None:
    config = toy_config(
        {
            "model": {"name": "ViT-B-32", "pretrained": str(checkpoint)},
            "algorithm": {"name": "car_ft", "kl_weight": 1.0},
            "optim": {"lr": 1e-5, "steps": 2, "batch_size": 4, "micro_batch": 2},
            "merges": [{"name": "wise_ft", "alphas": [0.5]}],
            "keep": {"weights": False},
        }
    )
    result = train(config, 0, workdir=tmp_path / "run", cache=tmp_path / "cache")
    assert result is not None
    assert result.facts["budget"] == "2 steps"
    assert "Transform(size=224" in result.facts["transform"]
    assert result.metrics["context/id/test/kl"] > 0
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert 0 <= result.merges["wise_ft@0.5"]["metrics"]["id/test/top1"] <= 1
