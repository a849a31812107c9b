"""What is quoted goes by names that the product and open_clip know."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import yaml

from carft_core.data import FAMILIES
from tracking.report.published import FILE

DATA: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", DATA["families"])
def test_a_family_and_its_shifts_are_registered(name: str) -> None:
    assert {*DATA["families"][name]} <= {*FAMILIES[name].folders}


@pytest.mark.parametrize("name", DATA["backbones"])
def test_a_backbone_is_one_that_open_clip_has_weights_of(name: str) -> None:
    backbone = DATA["backbones"][name]
    pairs = {(model, tag) for model in backbone["names"] for tag in backbone["pretrained"]}
    assert pairs <= {*open_clip.list_pretrained()}
