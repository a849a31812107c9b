"""Thumbnails show what the image tower sees, small enough for a page, and of the same data only."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carft_sweep.carft_core.clip import open_model
from carft_sweep.carft_core.config import TrialConfig, trial_config
from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.thumbnails import SIDE, thumbnails
from tests.conftest import TINY_CONFIG

SPLIT = "ood/outline"


def config(model: str = "builtin") -> TrialConfig:
    return trial_config(
        {
            "model": {"name": model},
            "data": {"family": "icon_shift_dev"},
            "algorithm": {"name": "fine_tune"},
        }
    )


def pictures(chosen: TrialConfig, count: int) -> list[Image.Image]:
    data = open_data(chosen.data)
    items = data.shifts["outline"].ids[:count]
    found = thumbnails(chosen, {SPLIT: items}, data_digest=data.digest)
    assert [*found] == [(SPLIT, item) for item in items]
    return [Image.open(io.BytesIO(png)) for png in found.values()]


def test_they_are_the_evaluation_views() -> None:
    chosen = config()
    found = pictures(chosen, 5)
    transform = open_model("builtin").transform
    split = open_data(chosen.data).shifts["outline"]
    views = split.views(range(5), transform=transform, seed=None, epoch=0).numpy()
    for view, picture in zip(views, found, strict=True):
        assert picture.size == (transform.size, transform.size)
        assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), view)


def test_those_of_a_large_model_are_made_small_and_its_weights_are_not_opened(
    tmp_path: Path,
) -> None:
    large = {**TINY_CONFIG, "vision_cfg": {**TINY_CONFIG["vision_cfg"], "image_size": 224}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": large}))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"no weights")
    (picture,) = pictures(config(str(tmp_path)), 1)
    assert picture.size == (SIDE, SIDE)


def test_of_other_data_there_are_none() -> None:
    with pytest.raises(RequestError, match="icon_shift_dev is not what the runs were made on"):
        thumbnails(config(), {}, data_digest="of another time")
