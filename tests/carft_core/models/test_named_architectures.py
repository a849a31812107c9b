"""Architectures: one that open_clip knows by name, from a checkpoint file, and towers' layers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.imagenet import IMAGENET
from carft_sweep.carft_core.evaluation.measure import predict
from carft_sweep.carft_core.models.classifier import ImageClassifier, linear_head, tower_outputs
from carft_sweep.carft_core.models.clip import open_model
from carft_sweep.carft_core.models.prompts import class_weights, template_set, text_features
from carft_sweep.carft_core.models.towers import outputs_by_depth, quarters
from tests.carft_core.bare_teacher import bare_teacher
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, trained

NAME = "small_vit_224"
SMALL_VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint as open_clip's own script saves it, of an architecture that open_clip
    knows by NAME from now on; random weights."""
    folder = tmp_path_factory.mktemp("small_vit")
    (folder / f"{NAME}.json").write_text(json.dumps(SMALL_VIT))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(NAME)
    path = folder / "epoch_1.pt"
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 1, "name": "test", "state_dict": state}, path)
    return path


def test_car_ft_trains_from_a_checkpoint_file(
    toy_config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    config = toy_config(
        {
            "model": {"name": NAME, "pretrained": str(checkpoint)},
            "algorithm": {"name": "car_ft", "kl_weight": 1.0},
            "optim": {"lr": 1e-5, "steps": 2, "batch_size": 4, "micro_batch": 2},
            "merges": [{"name": "wise_ft", "alphas": [0.5]}],
            "keep": {"weights": False},
        }
    )
    result = trained(config, tmp_path / "run")
    assert result.facts["budget"] == "2 steps"
    assert "Transform(size=224" in result.facts["transform"]
    assert result.metrics["context/id/test/kl"] > 0
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert 0 <= result.merges["wise_ft@0.5"]["metrics"]["id/test/top1"] <= 1


def test_zero_shot_on_imagenet_has_open_clips_logits(checkpoint: Path, imagenet_root: Path) -> None:
    names, places = open_clip.IMAGENET_CLASSNAMES[650:660], (0, 134, 517, 999)
    clip, cpu = open_model(NAME, str(checkpoint)), torch.device("cpu")
    w_cls = class_weights(text_features(clip, template_set("simple"), names, device=cpu))
    data = IMAGENET.open(DataConfig(family="imagenet", root=str(imagenet_root), shifts=()))
    teacher = bare_teacher(data.id_test.subset(places), clip.transform, batch_size=3)
    zero_shot = ImageClassifier(clip.image_tower, linear_head(clip.logit_scale * w_cls))
    (ours,) = predict([zero_shot], "id/test", teacher)
    model, _, preprocess = open_clip.create_model_and_transforms(
        NAME, pretrained=str(checkpoint), weights_only=False
    )
    tokenizer, simple = open_clip.get_tokenizer(NAME), open_clip.SIMPLE_IMAGENET_TEMPLATES
    weights = open_clip.build_zero_shot_classifier(model.eval(), tokenizer, names, simple)
    folder = imagenet_root / "imagenet" / "val"
    files = [folder / data.id_test.ids[index].removeprefix("test/") for index in places]
    with torch.no_grad():
        images = torch.stack([preprocess(Image.open(file)) for file in files])
        theirs = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ weights
    assert float(ours.logits.std()) > 1e-3
    torch.testing.assert_close(ours.logits, theirs, rtol=1e-5, atol=1e-5)


TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
TIMM = {"timm_pool": "", "timm_proj": "linear", "image_size": 64}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "layers": 8, "width": 32, "head_width": 16, "patch_size": 8},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "convnext": {**TIMM, "timm_model_name": "test_convnext"},
    "timm_vit": {**TIMM, "timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"},
}
PYRAMID = [256, 256, 64, 16, 4]
TOKENS = {"vit": [17] * 5, "resnet": PYRAMID, "convnext": PYRAMID, "timm_vit": [101] * 5}


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
    refused("the layers of its image tower", quarters, nn.Sequential(nn.Conv2d(3, 8, 4)))
