"""LiNeS: a weight for each layer."""

from __future__ import annotations

import open_clip
import pytest
import torch

from carft_sweep.carft_core.merges.lines import Lines, block_depths
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import stem_and_blocks
from carft_sweep.carft_core.testing import built_in_teacher


def test_a_vit_is_scaled_as_the_authors_code_does(teacher: Teacher) -> None:
    """Each tensor's offset, by the number in its name; outside of blocks by alpha."""
    zero_shot, tuned = teacher.classifier.state_dict(), teacher.new_classifier()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter))
    alpha, merge = 0.3, Lines(alphas=(0.3, 1))
    edited = merge.model(merge.points()[0], teacher, tuned).state_dict()
    blocks = len(stem_and_blocks(teacher.classifier.visual)[1])
    for name, after in tuned.state_dict().items():
        number = name.partition("resblocks.")[2].partition(".")[0]
        scale = alpha + (1 - alpha) * (int(number) / (blocks - 1) if number else 0)
        expected = after if name == "head.weight" else zero_shot[name]
        if name != "head.weight":
            expected = zero_shot[name] + scale * (after - zero_shot[name])
        torch.testing.assert_close(edited[name], expected)
    assert merge.model(merge.points()[1], teacher, tuned) is tuned
    with pytest.raises(ValueError, match="alphas must be above 0"):
        Lines(alphas=(0, 0.5))


def test_the_stages_of_a_convolutional_network_are_its_blocks() -> None:
    depths = block_depths(built_in_teacher().classifier.visual)
    assert sorted(set(depths.values())) == [0, 1 / 3, 2 / 3, 1]
    assert depths["visual.trunk.stages.3.downsample.1.weight"] == 1
    assert "visual.trunk.stem.0.weight" not in depths
    resnet = open_clip.modified_resnet.ModifiedResNet((1, 1, 1, 1), 8, 2, image_size=32, width=8)
    assert block_depths(resnet)["visual.layer2.0.conv1.weight"] == 1 / 3
