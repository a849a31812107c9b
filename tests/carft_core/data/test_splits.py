"""Carving and taking fractions: stratified, by unit, by the split seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.data.base import DataConfig, FamilyData, Source, Split
from carft_sweep.carft_core.data.splits import carve, take_fraction
from carft_sweep.carft_core.data.transforms import Transform
from tests.carft_core.refusals import refused

TRANSFORM = Transform(size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Places(Source):
    """A view's pixel is the item's place in the whole split."""

    def views(self, rows: Sequence[int], **_: Any) -> Tensor:
        return torch.tensor(rows).byte().view(-1, 1, 1, 1).expand(-1, 3, 1, 1)


def split_of(units: Sequence[str], labels: Sequence[int], **fields: Any) -> Split:
    return Split(
        ids=tuple(f"{unit}#{index}" for index, unit in enumerate(units)),
        units=tuple(units),
        labels=torch.tensor(labels, dtype=torch.int64),
        source=Places(),
        **fields,
    )


def unit_split(units_per_class: Sequence[int], views: int = 1) -> Split:
    named = [
        (f"{label}/{unit}", label)
        for _ in range(views)
        for label, count in enumerate(units_per_class)
        for unit in range(count)
    ]
    return split_of([unit for unit, _ in named], [label for _, label in named])


def units_per_class(split: Split) -> dict[int, int]:
    pairs = set(zip(split.units, split.labels.tolist(), strict=True))
    return {label: sum(label == labelled for _, labelled in pairs) for _, label in pairs}


COUNTS = st.lists(st.integers(2, 12), min_size=1, max_size=5)
FRACTIONS = st.floats(0.01, 0.99)


@given(COUNTS, st.integers(1, 3), FRACTIONS, st.integers(0, 9))
@settings(deadline=None)
def test_carving_divides_the_split_leaves_each_class_on_both_sides_and_no_drawing(
    counts: list[int], views: int, fraction: float, seed: int
) -> None:
    whole = unit_split(counts, views)
    train, val = carve(whole, val_fraction=fraction, split_seed=seed)
    assert sorted((*train.ids, *val.ids)) == sorted(whole.ids)
    for part in (train, val):
        assert set(part.labels.tolist()) == set(range(len(counts)))
        assert list(part.ids) == sorted(part.ids, key=whole.ids.index)
    assert not set(train.units) & set(val.units)
    part = take_fraction(whole, fraction, seed)
    assert all(part.units.count(unit) == views for unit in part.units)


@given(COUNTS, FRACTIONS, FRACTIONS, st.integers(0, 9))
@settings(deadline=None)
def test_each_class_gives_its_share_to_within_half_a_unit_and_less_is_a_part_of_more(
    counts: list[int], fraction: float, another: float, seed: int
) -> None:
    whole = unit_split(counts)
    _, val = carve(whole, val_fraction=fraction, split_seed=seed)
    taken = take_fraction(whole, fraction, seed)
    for label, count in enumerate(counts):
        for part, most in ((val, count - 1), (taken, count)):
            got = units_per_class(part)[label]
            assert abs(got - count * fraction) <= 0.5 + 1e-9 or got in (1, most)
    small, great = (set(take_fraction(whole, f, seed).ids) for f in sorted((fraction, another)))
    assert small <= great
    assert take_fraction(whole, 1.0, seed) is whole


@given(st.integers(0, 9), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_what_is_carved_depends_on_names_not_on_their_order(seed: int, random: object) -> None:
    whole = unit_split([6, 9])
    order = list(range(15))
    random.shuffle(order)  # type: ignore[attr-defined]
    mixed = split_of([whole.units[i] for i in order], whole.labels[order].tolist())
    first, second = (carve(split, val_fraction=0.3, split_seed=seed)[1] for split in (whole, mixed))
    assert set(first.units) == set(second.units)


def test_split_seeds_carve_differently_and_keep_no_carved_part_in_disguise() -> None:
    whole = unit_split([20, 20])
    carved = [carve(whole, val_fraction=0.2, split_seed=seed)[1].ids for seed in range(8)]
    assert len(set(carved)) == 8
    assert carve(whole, val_fraction=0.2, split_seed=3)[1].ids == carved[3]
    whole = unit_split([200])
    _, val = carve(whole, val_fraction=0.5, split_seed=0)
    assert 30 < len(set(val.ids) & set(take_fraction(whole, 0.5, 0).ids)) < 70


def test_a_single_unit_of_a_class_and_a_unit_of_several_classes_are_refused() -> None:
    whole = unit_split([4, 1, 1])
    carved = partial(carve, val_fraction=0.1, split_seed=0)
    animals = ("ant", "cat", "dog")
    refused(r"data\.val_fraction.*single image of cat, dog", carved, whole, class_names=animals)
    refused("single image of 1, 2:", carved, unit_split([4, 1, 1], views=3))
    mixed = split_of(["a", "a", "b"], [0, 1, 1])
    refused("unit 'a' holds images of several classes", take_fraction, mixed, 0.5, 0)


def test_a_subset_shows_the_items_of_the_whole_under_new_indices() -> None:
    whole = replace(unit_split([3, 3]), classes=(0, 1), groups=tuple("aabbcc"))
    inner = whole.subset([5, 3, 1]).subset([2, 0])
    assert inner.whole is whole
    assert (inner.groups, inner.classes) == (("a", "c"), (0, 1))
    assert inner.domains is not None
    assert inner.domains.tolist() == inner.labels.tolist() == [0, 1]
    assert (inner.ids, inner.units) == (whole.ids[1::4], whole.units[1::4])
    views = inner.views([1, 0], transform=TRANSFORM, seed=None, epoch=0)
    assert views[:, 0, 0, 0].tolist() == [5, 1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("test", 1)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                colour = (number, len(split), ord(name[0]))
                Image.new("RGB", (4, 4), colour).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def config(root: Path | str, **fields: object) -> DataConfig:
    return DataConfig.model_validate({"family": "image_folder", "root": str(root), **fields})


def test_val_is_carved_first_and_is_the_same_for_every_fraction_of_train(root: Path) -> None:
    half, whole = (open_data(config(root, val_fraction=0.2, train_fraction=f)) for f in (0.5, 1))
    assert (len(half.train), len(half.id_val), len(half.id_test)) == (8, 4, 2)
    assert half.id_val.ids == whole.id_val.ids
    assert not set(whole.train.ids) & set(whole.id_val.ids)
    assert set(half.train.ids) < set(whole.train.ids)


def test_an_official_val_split_is_kept(root: Path) -> None:
    for name in ("cat", "dog"):
        (root / "val" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / "val" / name / "one.png")
    data = open_data(config(root))
    assert (data.id_val.ids, len(data.train)) == (("val/cat/one.png", "val/dog/one.png"), 20)
    assert open_data(config(root)) is data, "a process prepares the same data once"
    assert open_data(config(root)) is not open_data(config(root, split_seed=1))


def test_shifts_are_chosen_by_name_and_in_their_order(root: Path) -> None:
    for name in ("c-fog-1", "c-fog-2", "c-snow-1", "r"):
        (root / "shifts" / name / "cat").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / "shifts" / name / "cat" / "1.png")
    everything = open_data(config(root))

    def chosen(*names: str) -> FamilyData:
        return open_data(config(root).model_copy(update={"shifts": names}))

    assert list(chosen("r", "c-fog").shifts) == ["r", "c-fog-1", "c-fog-2"]
    assert list(chosen("c", "r", "c-fog-1").shifts) == ["c-fog-1", "c-fog-2", "c-snow-1", "r"]
    assert (dict(chosen().shifts), chosen("c", "r").digest) == ({}, everything.digest)
    assert chosen("r").digest != everything.digest
    assert chosen("r").digest_of_training == everything.digest_of_training
    refused(r"data\.shifts: unknown shift 'c-f'", chosen, "c-f")


def test_a_relative_root_is_read_from_where_the_process_stands(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(root.parent)
    assert len(open_data(config(root.name)).train) == 18
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    refused("does not exist", open_data, config(root.name))
    refused("did you mean 'image_folder'", open_data, DataConfig(family="image_folders"))
