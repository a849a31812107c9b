"""LAION's table is compared with what the product's families read, and by what they are judged."""

from __future__ import annotations

import open_clip
import pytest

from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.base import DataFolder
from carft_sweep.tracking.comparison.metrics import kind_of
from carft_sweep.tracking.report.published_zero_shot import ReferenceSplit, published_table

SPLITS = {f"{split.family} {split.metric}": split for split in published_table().columns}


def folder_of(split: ReferenceSplit) -> DataFolder:
    name = split.metric.rpartition("/")[0].removeprefix("ood/").removeprefix("id/")
    return FAMILIES[split.family].folders[name]


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_a_set_has_the_images_templates_and_accuracy_of_the_family(split: ReferenceSplit) -> None:
    family = FAMILIES[split.family]
    assert split.images == folder_of(split).images
    assert split.templates == family.defaults.get("prompts.classes", "openai")
    assert kind_of(split.metric) == family.ranked_by, "it is judged by another one"


@pytest.mark.parametrize("name", published_table().rows)
def test_a_backbone_is_one_that_open_clip_has_weights_of(name: str) -> None:
    assert tuple(name.split()) in open_clip.list_pretrained()


def test_sets_that_are_divided_otherwise_are_left_out() -> None:
    assert {split.family for split in SPLITS.values()}.isdisjoint({"caltech101", "sun397"})
