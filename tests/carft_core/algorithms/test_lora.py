"""LoRA: the sums are the paper's, the result is an ordinary checkpoint, and what cannot use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.algorithms.lora import Lora
from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.carft_core.export.export import export
from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.clip import OpenedClip, open_image_tower
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for, built_in_teacher, started, toy_teacher
from tests.carft_core.trained import Config, same, trained, weights


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
            sums[f"{layer}.{matrix.removesuffix('.original')}"] = weight + scale * change.view_as(
                weight
            )
    return sums


@pytest.fixture(params=["vit", "convnext"])
def teacher(request: pytest.FixtureRequest, tiny_clip: OpenedClip) -> Teacher:
    return toy_teacher(tiny_clip) if request.param == "vit" else built_in_teacher()


def test_the_result_has_the_papers_sums_as_weights(teacher: Teacher) -> None:
    lora = Lora(of=ALGORITHMS["fine_tune"](), rank=2, alpha=3.0)
    model = started(lora, teacher)
    trained = {name for name, it in model.named_parameters() if it.requires_grad}
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


def test_the_matrices_are_those_of_the_blocks(tiny_clip: OpenedClip) -> None:
    lora = Lora(of=ALGORITHMS["fine_tune"]())

    def matrices(teacher: Teacher) -> set[str]:
        names = (it.partition(".parametrizations.") for it in lora.build(teacher).state_dict())
        whole = (f"{layer}.{name.partition('.')[0]}" for layer, _, name in names if name)
        return {".".join(name.split(".")[-3:]) for name in whole}

    attention = {"0.attn.in_proj_weight", "attn.out_proj.weight"}
    mlp = {"mlp.c_fc.weight", "mlp.c_proj.weight"}
    vit = {name.replace("1.", "0.", 1) for name in matrices(toy_teacher(tiny_clip))}
    assert vit == attention | mlp
    assert matrices(built_in_teacher()) == {"mlp.fc1.weight", "mlp.fc2.weight"}


@pytest.mark.parametrize("of", ["clipood", "carot", "tracer"])
def test_an_average_begins_where_what_trains_does(tiny_clip: OpenedClip, of: str) -> None:
    model = built(started(Lora(of=ALGORITHMS[of]()), toy_teacher(tiny_clip)), Averaged)
    assert same(model.model.state_dict(), model.average.state_dict())
    assert not any(parameter.requires_grad for parameter in model.average.parameters())


def test_a_run_of_it_is_merged_and_exported_like_any(toy_config: Config, tmp_path: Path) -> None:
    algorithm = {"name": "lora", "of": {"name": "car_ft", "kl_weight": 3.0}}
    merges = [{"name": "wise_ft", "alphas": [0.5]}]
    config = toy_config({"algorithm": algorithm, "merges": merges, "optim.lr": 0.01})
    result = trained(config, tmp_path / "run")
    assert "wise_ft@0.5" in result.merges
    export(tmp_path / "run", config, tmp_path / "out")
    tower, _ = open_image_tower(tmp_path / "out")
    state = with_changes(weights(tmp_path / "run"), 1.0)
    for name, weight in tower.state_dict().items():
        torch.testing.assert_close(weight, state[f"visual.{name}"])


def test_what_cannot_train_it_is_refused(toy_config: Config) -> None:
    for of, message in {
        "l2_sp": "l2_sp needs the tower's own weights, or trains none",
        "clip_adapter": "clip_adapter needs the tower's own weights, or trains none",
        "ema": "ema wraps an algorithm; let it wrap lora instead",
        "linear_probe": "linear_probe takes no steps",
    }.items():
        with pytest.raises(InvalidConfig, match=message):
            toy_config({"algorithm": {"name": "lora", "of": of}})
