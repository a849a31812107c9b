"""What holds for every family. A new one is tested by being registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carft_core.config import DataConfig, trial_config
from carft_core.data import FAMILIES, FamilyData, Split, Transform
from carft_core.data.splits import prepare

TRANSFORM = Transform(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def _image_folder(root: Path) -> None:
    noise = np.random.default_rng(0)
    for folder in ("train", "test", "shifts/grey"):
        for name in ("bell", "cat"):
            (root / folder / name).mkdir(parents=True)
            for index in range(4):
                pixels = noise.integers(0, 256, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / name / f"{index}.png")


NEEDS_ROOT: dict[str, Callable[[Path], None]] = {"image_folder": _image_folder}
"""How a test makes the data of a family that reads the user's own."""


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, FamilyData]:
    name: str = request.param
    root = None
    if name in NEEDS_ROOT:
        root = tmp_path_factory.mktemp(name)
        NEEDS_ROOT[name](root)
    config = DataConfig(family=name, root=None if root is None else str(root), val_fraction=0.25)
    return name, prepare(config)


def splits(data: FamilyData) -> Iterator[tuple[str, Split]]:
    assert data.val is not None
    yield from {"train": data.train, "val": data.val, "test": data.test, **data.shifts}.items()


def test_a_family_describes_itself_and_its_defaults_make_a_config(
    opened: tuple[str, FamilyData],
) -> None:
    name, data = opened
    family = FAMILIES[name]
    assert family.name == name
    assert family.summary
    assert len(data.class_names) == len(set(data.class_names)) > 1
    assert len(data.digest) == 64
    config = trial_config({"data": {"family": name}, "algorithm": "fine_tune"})
    assert config.data.family == name


def test_items_have_unique_names_a_unit_and_a_label_of_the_family(
    opened: tuple[str, FamilyData],
) -> None:
    _, data = opened
    for name, split in splits(data):
        assert len(split) == len(split.ids) == len(split.units) == len(split.labels) > 0, name
        assert len(set(split.ids)) == len(split.ids), name
        assert split.labels.dtype == torch.int64
        occurring = set(split.labels.tolist())
        assert occurring <= set(range(len(data.class_names))), name
        if split.classes is not None:
            assert occurring <= set(split.classes), name


def test_no_unit_stands_in_two_in_distribution_splits(opened: tuple[str, FamilyData]) -> None:
    _, data = opened
    assert data.val is not None
    train, val, test = set(data.train.units), set(data.val.units), set(data.test.units)
    assert not train & val
    assert not train & test
    assert not val & test


def test_every_class_is_trained_validated_and_tested(opened: tuple[str, FamilyData]) -> None:
    _, data = opened
    everything = set(range(len(data.class_names)))
    assert data.val is not None
    for split in (data.train, data.val, data.test):
        assert set(split.labels.tolist()) == everything


def test_a_view_depends_on_seed_epoch_and_index_alone(opened: tuple[str, FamilyData]) -> None:
    _, data = opened
    split = data.train
    one = split.views([0, 1, 3], transform=TRANSFORM, seed=5, epoch=2)
    torch.manual_seed(99)
    other = split.views([3, 0], transform=TRANSFORM, seed=5, epoch=2)
    assert one.shape == (3, 3, 32, 32)
    assert one.dtype == torch.float32
    assert torch.isfinite(one).all()
    assert torch.equal(one[[2, 0]], other)
    assert not torch.equal(one, split.views([0, 1, 3], transform=TRANSFORM, seed=6, epoch=2))
    assert not torch.equal(one, split.views([0, 1, 3], transform=TRANSFORM, seed=5, epoch=3))


def test_the_evaluation_view_is_fixed(opened: tuple[str, FamilyData]) -> None:
    _, data = opened
    for _, split in splits(data):
        one = split.views([0, 1], transform=TRANSFORM, seed=None, epoch=0)
        assert torch.equal(one, split.views([0, 1], transform=TRANSFORM, seed=None, epoch=7))


def test_the_same_data_has_the_same_digest_and_a_fraction_of_it_the_same_test(
    opened: tuple[str, FamilyData],
) -> None:
    name, data = opened
    if name in NEEDS_ROOT:
        pytest.skip("its root is this test's own; moving it is tested with the family")
    less = prepare(DataConfig(family=name, train_fraction=0.5))
    assert less.digest == data.digest
    assert less.test.ids == data.test.ids
    assert len(less.train) < len(data.train)
    assert set(less.train.ids) < set(data.train.ids)
