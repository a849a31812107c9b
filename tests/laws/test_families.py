"""What holds for every family, and for LAION's table of what the product's families read. A new one
is tested by being registered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import open_clip
import pytest
import torch

from carft_sweep.carft_core.data import FAMILIES, open_data
from carft_sweep.carft_core.data.base import DataConfig, DataFolder
from carft_sweep.carft_core.data.contract import TRANSFORM
from carft_sweep.carft_core.data.families.domainbed import FOLDERS
from carft_sweep.carft_core.data.families.downstream_tasks import TASKS
from carft_sweep.carft_core.testing import FAMILY_LAWS, OpenFamily, open_family
from carft_sweep.sweeps.spec.user_code import register_family
from carft_sweep.tracking.comparison.metrics import kind_of
from carft_sweep.tracking.report.published_zero_shot import ReferenceSplit, published_table
from tests import domain_bed_tree, downstream_tree, imagenet_tree, wilds_tree
from tests.image_files import noise_folder


def _image_folder(root: Path) -> None:
    colours = {"bell": [60, 200, 60], "cat": [60, 60, 200]}
    noise_folder(root, {"train": 4, "test": 4, "shifts/grey": 4}, colours)


NEEDS_ROOT: dict[str, Callable[[Path], object]] = {
    "image_folder": _image_folder,
    "imagenet": imagenet_tree.make,
    "iwildcam": lambda root: wilds_tree.make_iwildcam(root / wilds_tree.IWILDCAM),
    "fmow": lambda root: wilds_tree.make_fmow(root / wilds_tree.FMOW),
    **{name: functools.partial(domain_bed_tree.make, family=name) for name in FOLDERS},
    "domain_net": functools.partial(domain_bed_tree.make, family="domain_net", per_class=2),
}
"""How a test makes the data of a family that reads the user's own."""
HELD_OUT: dict[str, dict[str, object]] = {
    name: {"test_domain": [*domains][-1]} for name, domains in FOLDERS.items()
}
"""What a family of domains asks for."""


def _declared(root: Path) -> str:
    """A family that a file declares: a shift of one class, the test carved. Gives its name."""
    _image_folder(root)
    file = root / "law_abiding.family.yaml"
    file.write_text(
        "train: [train, test]\ntest_fraction: 0.25\n"
        "shifts: {grey: {folders: shifts/grey, exclude: cat}}\n"
        "prompts: {contexts: ['a photo of a {}', 'a grey {}']}\n"
    )
    return register_family(file).name


@pytest.fixture(scope="module", params=[*sorted(FAMILIES), "a YAML file"])
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenFamily]:
    name, root = request.param, tmp_path_factory.mktemp("family")
    if name == "a YAML file":
        name = _declared(root)
        yield open_family(FAMILIES[name], DataConfig(family=name, val_fraction=0.25))
        del FAMILIES[name]
        return
    fields: dict[str, object] = {"family": name, "val_fraction": 0.25, **HELD_OUT.get(name, {})}
    with pytest.MonkeyPatch.context() as patch:
        if name in TASKS:
            downstream_tree.make(root, name, patch)
        elif name in NEEDS_ROOT:
            NEEDS_ROOT[name](root)
        if name in TASKS or name in NEEDS_ROOT:
            fields["root"] = str(root)
        yield open_family(FAMILIES[name], DataConfig.model_validate(fields))


@pytest.mark.parametrize("law", FAMILY_LAWS, ids=lambda law: law.__name__)
def test_a_family_keeps_the_law(law: Callable[[OpenFamily], None], family: OpenFamily) -> None:
    law(family)


def test_a_shipped_family_says_what_it_is_looks_different_each_time_and_can_be_less(
    family: OpenFamily,
) -> None:
    assert family.family.name == family.config.family
    assert family.family.summary
    split = family.data.train
    first, *changed = (
        split.views([0, 1, 3], transform=TRANSFORM, seed=seed, epoch=epoch)
        for seed, epoch in ((5, 2), (6, 2), (5, 3))
    )
    assert not any(torch.equal(first, other) for other in changed)
    less = open_data(family.config.model_copy(update={"train_fraction": 0.5}))
    assert len(less.train) < len(split)
    assert set(less.train.ids) < set(split.ids)


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
