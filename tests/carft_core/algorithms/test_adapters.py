"""CLIP-Adapter by the authors' arithmetic, LoRA by the paper's sums, and what cannot use them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.algorithms.clip_adapter import Adapter, ClipAdapter
from carft_sweep.carft_core.algorithms.lora import Lora
from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.carft_core.export.export import export
from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.clip import open_image_tower
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for, built_in_teacher, started
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, same, trained, weights


def test_clip_adapters_loss_and_gradient_are_those_of_the_formula(teacher: Teacher) -> None:
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
        assert ours.grad.abs().max() > 0
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_without_a_part_of_the_mixture_it_is_the_zero_shot_model(teacher: Teacher) -> None:
    algorithm, images = ClipAdapter(alpha=0.0), batch_for(teacher).images
    classifier = algorithm.classifier(algorithm.build(teacher), teacher)
    with torch.no_grad():
        assert torch.allclose(classifier(images), teacher.classifier(images), atol=1e-4)


def test_a_run_keeps_the_adapter_alone_and_is_no_clip(toy_config: Config, tmp_path: Path) -> None:
    config = toy_config({"algorithm": "clip_adapter", "optim.epochs": 1})
    metrics = trained(config, tmp_path / "run").metrics
    assert {"id/test/top1", "context/id/test/kl"} <= metrics.keys()
    shapes = {key: list(value.shape) for key, value in weights(tmp_path / "run").items()}
    assert shapes == {"down.weight": [8, 32], "up.weight": [32, 8]}
    refused("no image tower with a linear head", export, tmp_path / "run", config, tmp_path / "out")
    merged = {"algorithm": "clip_adapter", "merges": ["wise_ft"]}
    refused(r"merges\[0\]: wise_ft cannot be made of clip_adapter: .* shape", toy_config, merged)


def with_changes(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The paper's sums of a state with low-rank changes, under the names of a state without."""
    sums = {}
    for name, weight in state.items():
        layer, _, matrix = name.partition(".parametrizations.")
        if not matrix:
            sums[name] = weight
        elif matrix.endswith(".original"):
            changes = name.removesuffix("original") + "0."
            change = state[f"{changes}up"] @ state[f"{changes}down"]
            whole = f"{layer}.{matrix.removesuffix('.original')}"
            sums[whole] = weight + scale * change.view_as(weight)
    return sums


@pytest.mark.parametrize("tower", ["vit", "convnext"])
def test_loras_result_has_the_papers_sums_as_weights(teacher: Teacher, tower: str) -> None:
    teacher = teacher if tower == "vit" else built_in_teacher()
    lora = Lora(of=ALGORITHMS["fine_tune"](), rank=2, alpha=3.0)
    model = started(lora, teacher)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changes = {name for name in model.state_dict() if name.endswith((".0.up", ".0.down"))}
    assert trained == changes | {"head.weight"}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    result = lora.classifier(model, teacher)
    assert isinstance(result, ImageClassifier)
    expected = with_changes(model.state_dict(), 3 / 2)
    assert expected.keys() == result.state_dict().keys() == teacher.classifier.state_dict().keys()
    for name, weight in result.state_dict().items():
        torch.testing.assert_close(weight, expected[name])
    images = batch_for(teacher).images
    with torch.no_grad():
        torch.testing.assert_close(result(images), model(images), rtol=1e-4, atol=1e-4)
    assert not torch.equal(result(images), teacher.classifier(images))


def test_loras_matrices_are_those_of_the_blocks(teacher: Teacher) -> None:
    lora = Lora(of=ALGORITHMS["fine_tune"]())

    def matrices(teacher: Teacher) -> set[str]:
        names = (name.partition(".parametrizations.") for name in lora.build(teacher).state_dict())
        whole = (f"{layer}.{name.partition('.')[0]}" for layer, _, name in names if name)
        return {".".join(name.split(".")[-3:]) for name in whole}

    attention = {"0.attn.in_proj_weight", "attn.out_proj.weight"}
    mlp = {"mlp.c_fc.weight", "mlp.c_proj.weight"}
    vit = {name.replace("1.", "0.", 1) for name in matrices(teacher)}
    assert vit == attention | mlp
    assert matrices(built_in_teacher()) == {"mlp.fc1.weight", "mlp.fc2.weight"}


@pytest.mark.parametrize("of", ["clipood", "carot", "tracer"])
def test_an_average_begins_where_what_trains_does(teacher: Teacher, of: str) -> None:
    model = built(started(Lora(of=ALGORITHMS[of]()), teacher), Averaged)
    assert same(model.model.state_dict(), model.average.state_dict())
    assert not any(parameter.requires_grad for parameter in model.average.parameters())


def test_a_run_of_lora_is_merged_and_exported_as_any(toy_config: Config, tmp_path: Path) -> None:
    algorithm = {"name": "lora", "of": {"name": "car_ft", "kl_weight": 3.0}}
    merges = [{"name": "wise_ft", "alphas": [0.5]}]
    config = toy_config({"algorithm": algorithm, "merges": merges, "optim.lr": 0.01})
    assert "wise_ft@0.5" in trained(config, tmp_path / "run").merges
    export(tmp_path / "run", config, tmp_path / "out")
    tower, _ = open_image_tower(tmp_path / "out")
    state = with_changes(weights(tmp_path / "run"), 1.0)
    for name, weight in tower.state_dict().items():
        torch.testing.assert_close(weight, state[f"visual.{name}"])


def test_what_cannot_train_lora_is_refused(toy_config: Config) -> None:
    for of, message in {
        "l2_sp": "l2_sp needs the tower's own weights, or trains none",
        "clip_adapter": "clip_adapter needs the tower's own weights, or trains none",
        "ema": "ema wraps an algorithm; let it wrap lora instead",
        "linear_probe": "linear_probe takes no steps",
    }.items():
        with pytest.raises(InvalidConfig, match=message):
            toy_config({"algorithm": {"name": "lora", "of": of}})
