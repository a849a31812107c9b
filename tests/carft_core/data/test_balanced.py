"""Batches by step: as many of each group, every item once a pass, and no memory of what was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carft_sweep.carft_core.data.base import Source, Split
from carft_sweep.carft_core.data.loader import BatchSource, Loader, shuffled, training_plan
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.errors import RequestError

TRANSFORM = Transform(size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
Batch = list[tuple[int, int]]
"""Of each item its index and the pass that its view is of."""


@dataclass(frozen=True, eq=False)
class Told(Source):
    """A view's pixels tell the item, the seed and the pass."""

    broken: int = -1

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        if self.broken in rows:
            raise RequestError(f"item {self.broken} is broken")
        values = torch.tensor([[row, 255 if seed is None else seed, epoch] for row in rows]).byte()
        return values[:, :, None, None].expand(-1, -1, transform.size, transform.size)


def grouped(sizes: Sequence[int], *, in_groups: bool = True, broken: int = -1) -> Split:
    """Items of groups in turn."""
    names = tuple(f"group {place}" for place, size in enumerate(sizes) for _ in range(size))
    return Split(
        ids=tuple(f"item {index}" for index in range(len(names))),
        labels=torch.arange(len(names)) % 3,
        source=Told(broken),
        groups=names if in_groups else None,
    )


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
            assert set(seeds.tolist()) == {seed}
            if split.groups is None:
                assert domain is None
            else:
                assert domain is not None
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
@pytest.mark.parametrize("workers", [0, 2])
def test_steps_are_the_same_wherever_one_begins_and_whatever_loads_them(
    *, balanced: bool, workers: int
) -> None:
    split = grouped([7, 4])
    whole = loaded(split, range(9), balanced=balanced)
    parts = [range(3), range(3, 4), range(4, 9)]
    again = [b for part in parts for b in loaded(split, part, balanced=balanced, workers=workers)]
    assert again == whole


def test_without_balance_all_items_are_one_stream_in_the_loaders_order() -> None:
    batches = loaded(grouped([4, 3], in_groups=False), range(7), balanced=False)
    pairs = [pair for batch in batches for pair in batch]
    assert [item for item, _ in pairs[:7]] == shuffled(7, seed=5, epoch=1).tolist()
    assert [item for item, _ in pairs[7:]] == shuffled(7, seed=5, epoch=2).tolist()
    assert [number for _, number in pairs] == [1] * 7 + [2] * 7


def test_orders_differ_between_seeds_passes_and_groups() -> None:
    orders = {
        (seed, number, stream): tuple(shuffled(30, seed=seed, epoch=number, stream=stream))
        for seed in (0, 1)
        for number in (1, 2)
        for stream in (0, 1)
    }
    assert len(set(orders.values())) == len(orders)
    one, two = (loaded(grouped([9, 9]), range(4), seed=seed) for seed in (1, 2))
    assert one != two


def test_a_split_without_groups_cannot_be_balanced() -> None:
    with pytest.raises(ValueError, match="no groups"):
        loaded(grouped([3], in_groups=False), range(1))
