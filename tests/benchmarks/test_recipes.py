"""What recipes take is told of as many images as their makers publish."""

from __future__ import annotations

from collections.abc import Mapping
from unittest import mock

import pytest

from benchmarks.gpu.recipes import RECIPES, published
from carft_sweep.carft_core import data
from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import FAMILIES, open_data
from carft_sweep.sweeps.spec.spec import load_spec


@pytest.mark.parametrize(
    ("fields", "train", "measured"),
    [
        ({"family": "cifar100"}, 45_000, {"id/test": 10_000}),
        ({"family": "fmow"}, 76_863, {"id/test": 11_327, "ood/test": 22_108, "ood/val": 19_915}),
        (
            {"family": "pacs", "test_domain": "sketch"},
            4_851,
            {"ood/sketch": 3_144, "ood/sketch_out": 785},
        ),
    ],
)
def test_a_family_without_images_has_the_published_number(
    fields: Mapping[str, str], train: int, measured: Mapping[str, int]
) -> None:
    families = {name: published(of) if of.folders else of for name, of in FAMILIES.items()}
    config = trial_config({"data": fields, "algorithm": "fine_tune"}).for_seed(0)
    with mock.patch.object(data, "FAMILIES", families):
        family_data = open_data(config.data)
        assert len(family_data.train) == train
        assert {name: len(split) for name, split in family_data.measured().items()} == measured
        assert (family_data.train.groups is None) == (fields["family"] != "pacs")


def test_its_recipes_and_profiles_are_shipped_with_a_real_model() -> None:
    for recipe, profiles in RECIPES.items():
        for profile in profiles:
            spec = load_spec(recipe, [f"profile={profile}"] if profile else [])
            assert spec.typical_config().model.name == "ViT-B-16"
