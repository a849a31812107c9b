"""The estimate of a sweep's cost before it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.gpu_hours import cost, images_of
from carft_sweep.sweeps.spec.spec import load_spec


@pytest.mark.usefixtures("registries")
def test_a_family_whose_numbers_are_not_published_is_counted_on_disk(tmp_path: Path) -> None:
    for folder, count in (("train", 10), ("test", 3), ("shift", 4)):
        for label in ("cat", "dog"):
            place = tmp_path / folder / label
            place.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, len(folder), len(label))).save(
                    place / f"{number}.png"
                )
    family = {"name": "pets", "test": "test", "shifts": {"blur": "shift"}}
    (tmp_path / "pets.family.yaml").write_text(json.dumps(family))
    sweep = {
        "parameters": {"algorithm.kl_weight": {"values": [0.3]}},
        "seeds": 2,
        "trial": {
            "algorithm": {"name": "car_ft"},
            "data": {"family": "pets.family.yaml", "val_fraction": 0.2},
            "optim": {"epochs": 3, "batch_size": 8},
        },
    }
    (tmp_path / "own.yaml").write_text(json.dumps(sweep))
    spec = load_spec(tmp_path / "own.yaml")
    images = images_of(spec.config_for(spec.points()[0]))
    assert (images.trained, images.epochs, images.val, images.measured) == (3 * 2 * 8, 3, 4, 14)
    assert cost(spec).operations > 0


def test_published_numbers_need_no_data() -> None:
    spec = load_spec("domainbed", ["profile=office_home"])
    assert cost(spec).trained == 11_520_000
