"""CLIP-Adapter: the authors' arithmetic, what it trains, and what cannot be made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.clip_adapter import Adapter, ClipAdapter
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.export.export import export
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for
from tests.carft_core.trained import Config, trained, weights


def test_loss_and_gradient_are_of_the_formula_on_features_of_any_norm(teacher: Teacher) -> None:
    algorithm, batch = ClipAdapter(alpha=0.3), batch_for(teacher)
    torch.manual_seed(0)
    model = algorithm.build(teacher)
    assert isinstance(model, Adapter)
    loss, logs = algorithm.loss(model, batch, teacher)
    loss.backward()

    layers = nn.Sequential(nn.Linear(32, 8, bias=False), nn.ReLU(), nn.Linear(8, 32, bias=False))
    layers.load_state_dict({"0.weight": model.down.weight, "2.weight": model.up.weight})
    with torch.no_grad():
        raw = teacher.clip.model.visual(batch.images)  # type: ignore[operator]
        texts = F.normalize(teacher.w_raw.mean(dim=0), dim=1)
    assert raw.norm(dim=1).sub(1).abs().min() > 0.1, "or this says nothing of the norm"
    mixed = 0.3 * torch.relu(layers(raw)) + 0.7 * raw
    logits = teacher.scale * (mixed / mixed.norm(dim=1, keepdim=True)) @ texts.T
    expected = F.cross_entropy(logits, batch.labels)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert logs["cross_entropy"] is loss
    for ours, theirs in zip(model.parameters(), layers.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.abs().max() > 0
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_without_a_part_of_the_mixture_it_is_the_zero_shot_model(teacher: Teacher) -> None:
    algorithm, images = ClipAdapter(alpha=0.0), batch_for(teacher).images
    classifier = algorithm.classifier(algorithm.build(teacher), teacher)
    with torch.no_grad():
        assert torch.allclose(classifier(images), teacher.classifier(images), atol=1e-4)


def test_a_run_keeps_the_adapter_alone_which_is_no_clip(toy_config: Config, tmp_path: Path) -> None:
    config = toy_config({"algorithm": "clip_adapter", "optim.epochs": 1})
    metrics = trained(config, tmp_path / "run").metrics
    assert {"id/test/top1", "context/id/test/kl"} <= metrics.keys()
    shapes = {key: list(value.shape) for key, value in weights(tmp_path / "run").items()}
    assert shapes == {"down.weight": [8, 32], "up.weight": [32, 8]}
    with pytest.raises(RequestError, match="no image tower with a linear head"):
        export(tmp_path / "run", config, tmp_path / "out")
    refused = r"merges\[0\]: wise_ft cannot be made of clip_adapter: .* another shape"
    with pytest.raises(RequestError, match=refused):
        toy_config({"algorithm": "clip_adapter", "merges": [{"name": "wise_ft"}]})
