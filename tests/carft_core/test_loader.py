"""Batches are the same whatever loads them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carft_core.data.base import Split
from carft_core.data.loader import batches, shuffled
from carft_core.data.transforms import Transform
from carft_core.errors import RequestError

TRANSFORM = Transform(size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class NumberedSplit(Split):
    """A view's pixels tell the item, the seed and the epoch that it was made for."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        self.ids = self.units = tuple(f"item {index}" for index in range(count))
        self.labels = torch.arange(count) % 3
        self.broken = broken
        self.calls: list[int] = []

    def views(
        self, indices: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        self.calls.append(len(indices))
        if self.broken in indices:
            raise RequestError(f"item {self.broken} is broken")
        values = torch.tensor([[i, -1 if seed is None else seed, epoch] for i in indices]).float()
        return values[:, :, None, None].expand(-1, -1, transform.size, transform.size)


def loaded(
    split: Split, *, seed: int | None = None, epoch: int = 1, batch_size: int = 4, workers: int = 0
) -> list[tuple[list[float], list[int], list[int]]]:
    return [
        (images[:, 0, 0, 0].tolist(), labels.tolist(), indices.tolist())
        for images, labels, indices in batches(
            split,
            batch_size=batch_size,
            transform=TRANSFORM,
            seed=seed,
            epoch=epoch,
            workers=workers,
        )
    ]


def test_evaluation_goes_through_the_split_in_order_and_drops_nothing() -> None:
    assert loaded(NumberedSplit(6)) == [
        ([0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 2, 3]),
        ([4, 5], [1, 2], [4, 5]),
    ]


@given(
    count=st.integers(0, 40),
    batch_size=st.integers(1, 50),
    seed=st.one_of(st.none(), st.integers(0, 2**63 - 1)),
)
@settings(deadline=None)
def test_every_item_comes_once_an_epoch_with_its_own_label_and_view(
    count: int, batch_size: int, seed: int | None
) -> None:
    split = NumberedSplit(count)
    seen = loaded(split, seed=seed, batch_size=batch_size)
    indices = [index for _, _, part in seen for index in part]
    assert sorted(indices) == list(range(count))
    assert [len(part) for _, _, part in seen[:-1]] == [batch_size] * (len(seen) - 1)
    for images, labels, part in seen:
        assert images == part
        assert labels == split.labels[part].tolist()


def test_a_batch_is_one_call_of_the_split() -> None:
    split = NumberedSplit(10)
    loaded(split, seed=3)
    assert split.calls == [4, 4, 2]


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("workers", [1, 2, 9])
def test_workers_change_nothing(seed: int | None, workers: int) -> None:
    split = NumberedSplit(11)
    assert loaded(split, seed=seed, workers=workers) == loaded(split, seed=seed)


def test_views_are_asked_for_by_seed_and_epoch() -> None:
    images, _, _ = next(
        batches(NumberedSplit(3), batch_size=3, transform=TRANSFORM, seed=7, epoch=5)
    )
    assert images[:, 1].unique().tolist() == [7.0]
    assert images[:, 2].unique().tolist() == [5.0]


def test_the_order_differs_between_seeds_and_epochs_and_not_between_calls() -> None:
    orders = {(s, e): tuple(shuffled(50, seed=s, epoch=e)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == len(orders)
    assert all(tuple(shuffled(50, seed=s, epoch=e)) == order for (s, e), order in orders.items())


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    """Kept results rest on it: a change here makes every run another run."""
    assert shuffled(10, seed=0, epoch=1).tolist() == [1, 9, 2, 8, 3, 5, 0, 4, 7, 6]


def test_the_order_tells_even_great_seeds_apart() -> None:
    great = 2**64 - 2
    assert (
        shuffled(50, seed=great, epoch=1).tolist() != shuffled(50, seed=great + 1, epoch=1).tolist()
    )


def test_each_place_gets_each_item_about_as_often() -> None:
    counts = torch.zeros(5, 5)
    for seed in range(1000):
        for place, item in enumerate(shuffled(5, seed=seed, epoch=1)):
            counts[place, item] += 1
    # Binomial(1000, 1/5) has a standard deviation of 12.6; five of them.
    assert (counts - 200).abs().max() < 63


@pytest.mark.parametrize("seed", [None, 4])
def test_only_the_items_at_the_given_indices_come(seed: int | None) -> None:
    seen = [
        part.tolist()
        for _, _, part in batches(
            NumberedSplit(9),
            batch_size=2,
            transform=TRANSFORM,
            seed=seed,
            epoch=1,
            indices=[7, 2, 5],
        )
    ]
    if seed is None:
        assert seen == [[7, 2], [5]]
    assert sorted(index for part in seen for index in part) == [2, 5, 7]


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_neither_used_nor_touched(workers: int) -> None:
    torch.manual_seed(1)
    first = loaded(NumberedSplit(9), seed=2, workers=workers)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(999)
    assert loaded(NumberedSplit(9), seed=2, workers=workers) == first


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_told_in_its_own_words(workers: int) -> None:
    with pytest.raises(RequestError) as caught:
        loaded(NumberedSplit(9, broken=6), workers=workers)
    assert str(caught.value) == "item 6 is broken"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_before_a_broken_image_still_come(workers: int) -> None:
    stream = batches(
        NumberedSplit(9, broken=6),
        batch_size=3,
        transform=TRANSFORM,
        seed=None,
        epoch=0,
        workers=workers,
    )
    assert next(stream)[2].tolist() == [0, 1, 2]
    assert next(stream)[2].tolist() == [3, 4, 5]
    with pytest.raises(RequestError):
        next(stream)


def test_workers_end_with_the_error_even_while_it_is_still_being_told() -> None:
    with pytest.raises(RequestError) as told:
        loaded(NumberedSplit(9, broken=0), workers=2)
    assert told.traceback
    assert not multiprocessing.active_children()


def test_workers_end_when_nobody_wants_more_batches() -> None:
    stream = batches(
        NumberedSplit(9), batch_size=2, transform=TRANSFORM, seed=None, epoch=0, workers=2
    )
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_asking_for_pinned_memory_is_harmless_without_cuda(workers: int) -> None:
    stream = batches(
        NumberedSplit(2),
        batch_size=2,
        transform=TRANSFORM,
        seed=None,
        epoch=0,
        workers=workers,
        pin_memory=True,
    )
    images, labels, _ = next(stream)
    assert images.is_pinned() == labels.is_pinned() == torch.cuda.is_available()
    stream.close()  # type: ignore[attr-defined]
