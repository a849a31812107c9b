"""Batches by step: as many of each group, every item once a pass, and no memory of what was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.data.base import Split
from carft_sweep.carft_core.data.loader import BatchSource, Loader, shuffled, training_plan
from tests.carft_core.data.numbered import TRANSFORM, numbered

Batch = list[tuple[int, int]]
"""Of each item its index and the pass that its view is of."""


def grouped(sizes: Sequence[int], *, in_groups: bool = True) -> Split:
    """Items of groups in turn."""
    names = tuple(f"group {place}" for place, size in enumerate(sizes) for _ in range(size))
    return numbered(len(names), groups=names if in_groups else None)


def loaded(
    split: Split,
    steps: range,
    *,
    batch_size: int = 2,
    seed: int = 5,
    balanced: bool = True,
    workers: int = 0,
) -> list[Batch]:
    plan = training_plan(
        split, batch_size=batch_size, seed=seed, balanced=balanced, whole_passes=False
    )
    batches = []
    with Loader({"train": split}, transform=TRANSFORM, workers=workers) as loader:
        for images, labels, index, domain in loader.steps(BatchSource("train", plan, seed), steps):
            items, seeds, passes = images[:, :, 0, 0].T.to(torch.int64)
            assert items.tolist() == index.tolist()
            assert labels.tolist() == split.labels[index].tolist()
            assert set(seeds.tolist()) == {seed % 255}
            assert (domain is None) == (split.groups is None)
            if domain is not None and split.groups is not None:
                names = [f"group {number}" for number in domain.tolist()]
                assert names == [split.groups[row] for row in items.tolist()]
            batches.append(list(zip(items.tolist(), passes.tolist(), strict=True)))
    return batches


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(sizes=SIZES, batch_size=st.integers(1, 12), seed=st.integers(0, 255))
@settings(deadline=None, max_examples=40)
def test_a_batch_has_as_many_of_each_group_and_a_pass_has_each_item_once(
    sizes: list[int], batch_size: int, seed: int
) -> None:
    split = grouped(sizes)
    groups = split.groups or ()
    streams: dict[str, Batch] = {name: [] for name in groups}
    for batch in loaded(split, range(7), batch_size=batch_size, seed=seed):
        assert Counter(groups[item] for item, _ in batch) == dict.fromkeys(groups, batch_size)
        for item, number in batch:
            streams[groups[item]].append((item, number))
    for name, stream in streams.items():
        members = [index for index, group in enumerate(groups) if group == name]
        for number in range(1, len(stream) // len(members) + 1):
            of_pass = stream[(number - 1) * len(members) : number * len(members)]
            assert {told for _, told in of_pass} == {number}
            assert sorted(item for item, _ in of_pass) == members


def test_a_small_group_comes_round_while_a_large_one_is_in_its_first_pass() -> None:
    batch = [pair for one in loaded(grouped([20, 3]), range(4)) for pair in one]
    assert {number for item, number in batch if item < 20} == {1}
    assert {number for item, number in batch if item >= 20} == {1, 2, 3}


def test_a_batch_takes_one_of_each_group_in_turn() -> None:
    """So that the parts that fit into memory are as mixed as the whole."""
    (batch,) = loaded(grouped([5, 5, 5]), range(1))
    assert [item // 5 for item, _ in batch] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("balanced", [True, False])
def test_steps_are_the_same_wherever_one_begins_and_whatever_loads_them(*, balanced: bool) -> None:
    split, whole = grouped([7, 4]), loaded(grouped([7, 4]), range(9), balanced=balanced)
    for parts, workers in (([range(3), range(3, 4), range(4, 9)], 0), ([range(4, 9)], 2)):
        again = [loaded(split, part, balanced=balanced, workers=workers) for part in parts]
        assert [batch for part in again for batch in part] == whole[parts[0].start :]


def test_without_balance_all_items_are_one_stream_in_the_loaders_order() -> None:
    batches = loaded(grouped([4, 3], in_groups=False), range(7), balanced=False)
    pairs = [pair for batch in batches for pair in batch]
    assert [item for item, _ in pairs[:7]] == shuffled(7, seed=5, epoch=1).tolist()
    assert [item for item, _ in pairs[7:]] == shuffled(7, seed=5, epoch=2).tolist()
    assert [number for _, number in pairs] == [1] * 7 + [2] * 7


def test_a_split_without_groups_cannot_be_balanced() -> None:
    with pytest.raises(ValueError, match="no groups"):
        loaded(grouped([3], in_groups=False), range(1))
