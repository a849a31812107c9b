"""LAION's table is compared with what the product's families read, and by what they are judged."""

from __future__ import annotations

import open_clip
import pytest

from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.base import DataFolder
from carft_sweep.tracking.comparison.metrics import kind_of
from carft_sweep.tracking.report.published_zero_shot import ReferenceSplit, published_table

SPLITS = {f"{it.family} {it.metric}": it for it in published_table().columns}


def folder_of(split: ReferenceSplit) -> DataFolder:
    name = split.metric.rpartition("/")[0].removeprefix("ood/").removeprefix("id/")
    return FAMILIES[split.family].folders[name]


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_a_set_has_as_many_images_as_the_family_knows_of(split: ReferenceSplit) -> None:
    assert split.images == folder_of(split).images


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_the_templates_are_the_familys_own(split: ReferenceSplit) -> None:
    assert split.templates == FAMILIES[split.family].defaults.get("prompts.classes", "openai")


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_the_accuracy_is_the_one_that_the_family_is_judged_by(split: ReferenceSplit) -> None:
    assert kind_of(split.metric) == FAMILIES[split.family].ranked_by


@pytest.mark.parametrize("name", published_table().rows)
def test_a_backbone_is_one_that_open_clip_has_weights_of(name: str) -> None:
    assert tuple(name.split()) in open_clip.list_pretrained()


def test_sets_that_are_divided_otherwise_are_left_out() -> None:
    assert {it.family for it in SPLITS.values()}.isdisjoint({"caltech101", "sun397"})
