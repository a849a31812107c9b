"""Batches are the same whatever loads them, whole passes or as many of each group a step."""

from __future__ import annotations

import io
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from carft_sweep.carft_core.data import loader as module
from carft_sweep.carft_core.data.base import DataConfig, Files, Source, Split
from carft_sweep.carft_core.data.families.icon_shift import ICON_SHIFT_DEV
from carft_sweep.carft_core.data.images import read_plain
from carft_sweep.carft_core.data.loader import BatchRange, BatchSource, EpochPlan, Loader, shuffled
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.errors import RequestError
from tests.carft_core.refusals import refused
from tests.carft_core.stand_ins import watched

TRANSFORM = Transform(size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Numbered(Source):
    """A view's pixels tell the item, the seed (255 for none) and the pass that it was made for."""

    broken: int | None = None
    calls: list[int] = field(default_factory=list)

    def views(self, rows: Sequence[int], *, seed: int | None, epoch: int, **_: Any) -> Tensor:
        self.calls.append(len(rows))
        if self.broken in rows:
            raise RequestError(f"item {self.broken} is broken")
        number = 255 if seed is None else seed % 255
        values = torch.tensor([[row, number, epoch] for row in rows]).byte()
        return values[:, :, None, None].expand(-1, -1, TRANSFORM.size, TRANSFORM.size)


def numbered(count: int, broken: int | None = None, groups: tuple[str, ...] | None = None) -> Split:
    return Split(
        ids=tuple(f"item {index}" for index in range(count)),
        labels=torch.arange(count) % 3,
        source=Numbered(broken),
        groups=groups,
    )


def loader_of(split: Split, *, workers: int = 0) -> Loader:
    return Loader({"train": split}, transform=TRANSFORM, workers=workers)


def batches_of(split: Split, *, seed: int | None = None, batch_size: int = 4) -> BatchSource:
    return BatchSource("train", EpochPlan(len(split), batch_size, seed), seed)


def a_pass(count: int, number: int = 1, batch_size: int = 4) -> range:
    per_pass = -(-count // batch_size)
    return range((number - 1) * per_pass, number * per_pass)


def loaded(
    split: Split, *, seed: int | None = None, epoch: int = 1, batch_size: int = 4, workers: int = 0
) -> list[tuple[list[int], list[int], list[int]]]:
    batches = batches_of(split, seed=seed, batch_size=batch_size)
    with loader_of(split, workers=workers) as loader:
        return [
            (batch.images[:, 0, 0, 0].tolist(), batch.labels.tolist(), batch.index.tolist())
            for batch in loader.steps(batches, a_pass(len(split), epoch, batch_size))
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
    split = numbered(count)
    seen = loaded(split, seed=seed, batch_size=batch_size)
    indices = [index for _, _, part in seen for index in part]
    assert (indices if seed is None else sorted(indices)) == list(range(count))
    assert [len(part) for _, _, part in seen[:-1]] == [batch_size] * (len(seen) - 1)
    for images, labels, part in seen:
        assert (images, labels) == (part, split.labels[part].tolist())


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("workers", [1, 2, 9])
def test_workers_change_nothing(seed: int | None, workers: int) -> None:
    split = numbered(11)
    torch.manual_seed(1)
    first, after = loaded(split, seed=seed, workers=workers), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), after), "the global state is neither used nor touched"
    torch.manual_seed(999)
    assert loaded(split, seed=seed) == first


def test_a_batch_is_one_call_of_the_split_by_seed_and_pass() -> None:
    split = numbered(10)
    first, *_, last = loader_of(split).steps(batches_of(split, seed=7), range(12, 15))
    assert isinstance(split.source, Numbered)
    assert split.source.calls == [4, 4, 2]
    for batch in (first, last):
        assert batch.images[:, 1].unique().tolist() == [7]
        assert batch.images[:, 2].unique().tolist() == [5]
        assert batch.images.dtype == torch.uint8
    for number in (1, 2, 5):
        items = [item for _, _, rows in loaded(numbered(11), seed=3, epoch=number) for item in rows]
        assert items == shuffled(11, seed=3, epoch=number).tolist()


def test_orders_differ_between_seeds_epochs_and_streams_not_machines() -> None:
    """Kept results rest on it: a change here makes every run another run."""
    assert shuffled(10, seed=0, epoch=1).tolist() == [1, 9, 2, 8, 3, 5, 0, 4, 7, 6]
    orders = {
        tuple(shuffled(50, seed=seed, epoch=epoch, stream=stream))
        for seed in (0, 1, 2, 2**64 - 2, 2**64 - 1)
        for epoch in range(3)
        for stream in range(2)
    }
    assert len(orders) == 5 * 3 * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_told_in_its_own_words_after_the_batches_before_it(workers: int) -> None:
    split = numbered(9, broken=6)
    with loader_of(split, workers=workers) as loader:
        stream = loader.steps(batches_of(split, batch_size=3), range(3))
        assert next(stream).index.tolist() == [0, 1, 2]
        assert next(stream).index.tolist() == [3, 4, 5]
        refused(r"^item 6 is broken$", next, stream)


def test_workers_end_with_the_error_even_while_it_is_still_being_told() -> None:
    with pytest.raises(RequestError) as caught:
        loaded(numbered(9, broken=0), workers=2)
    assert caught.traceback
    assert not multiprocessing.active_children()


def test_workers_serve_all_steps_until_they_are_ended() -> None:
    split = numbered(9)
    loader, batches = loader_of(split, workers=2), batches_of(split, batch_size=2)
    assert not multiprocessing.active_children()
    next(loader.steps(batches, range(5)))  # and the rest is not wanted
    workers = {process.pid for process in multiprocessing.active_children()}
    assert len(workers) == 2
    rows = [batch.index.tolist() for batch in loader.steps(batches, range(3, 6))]
    assert rows == [[6, 7], [8], [0, 1]]
    assert {process.pid for process in multiprocessing.active_children()} == workers
    stream = loader.steps(batches, range(5))
    next(stream)
    loader.close()
    assert not multiprocessing.active_children()


def test_workers_serve_several_splits_until_the_outermost_with_ends() -> None:
    splits = {"train": numbered(9), "id/val": numbered(5)}
    with Loader(splits, transform=TRANSFORM, workers=2) as loader:
        processes = []
        for name, split in splits.items():
            with loader:
                batches = BatchSource(name, EpochPlan(len(split), 4), None)
                rows = [batch.index for batch in loader.steps(batches, a_pass(len(split)))]
                assert torch.cat(rows).tolist() == [*range(len(split))]
            processes.append({process.pid for process in multiprocessing.active_children()})
        assert (processes[0], len(processes[0])) == (processes[1], 2)
    assert not multiprocessing.active_children()


@dataclass(frozen=True)
class Scene:
    """Parts of three splits, and what they hold."""

    parts: list[BatchRange]
    held: list[list[list[int]]]
    loader: Loader

    def load(self, number: int) -> list[list[int]]:
        batches = self.loader.steps(*self.parts[number])
        return [batch.images[:, :, 0, 0].flatten().tolist() for batch in batches]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    splits = {name: numbered(count) for name, count in {"a": 9, "b": 3, "c": 12}.items()}
    parts: list[BatchRange] = [
        (BatchSource(name, EpochPlan(len(split), 2, seed), seed), a_pass(len(split), number, 2))
        for number in (1, 2)
        for seed, (name, split) in zip((7, None, None), splits.items(), strict=True)
    ]
    scene = Scene(parts, [], Loader(splits, transform=TRANSFORM))
    held = [scene.load(number) for number in range(len(parts))]
    with Loader(splits, transform=TRANSFORM, workers=2) as loader:
        yield Scene(parts, held, loader)


ORDERS = st.lists(st.integers(0, 5), max_size=6)


@given(expected=ORDERS, called=ORDERS)
@settings(deadline=None, max_examples=5)
def test_expecting_changes_no_batch(scene: Scene, expected: list[int], called: list[int]) -> None:
    scene.loader.expect(scene.parts[number] for number in expected)
    for place, number in enumerate(called):
        if place % 3 == 2:  # and the rest is not wanted
            next(scene.loader.steps(*scene.parts[number]))
        assert scene.load(number) == scene.held[number]


def test_what_is_expected_is_loaded_before(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = watched(monkeypatch, Loader, "_restart", lambda _, part: part)
    scene.loader.expect(scene.parts)
    for number in range(1, len(scene.parts)):  # the first was not needed after all
        assert scene.load(number) == scene.held[number]
    assert restarts == [scene.parts[1]]


def test_an_iteration_that_ends_late_moves_no_other(scene: Scene) -> None:
    scene.loader.expect(scene.parts)
    late = scene.loader.steps(*scene.parts[1])
    next(late), next(late)  # its last, and its end is not seen yet
    next(scene.loader.steps(*scene.parts[2]))
    assert not [*late]
    assert scene.load(3) == scene.held[3]


def test_two_iterations_at_once_are_refused(scene: Scene) -> None:
    first = scene.loader.steps(*scene.parts[0])
    next(first)
    next(scene.loader.steps(*scene.parts[2]))
    with pytest.raises(RuntimeError, match="other batches"):
        next(first)


@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_memory_is_harmless_without_cuda_and_a_gpu_gets_most_cores(workers: int) -> None:
    split = numbered(2)
    with Loader({"train": split}, transform=TRANSFORM, workers=workers, pin_memory=True) as loader:
        (batch,) = loader.steps(batches_of(split), range(1))
        assert batch.images.is_pinned() == (workers > 0 and torch.cuda.is_available())
    assert [module.default_workers("cuda", cores) for cores in (1, 2, 8, 64)] == [1, 1, 7, 16]
    assert module.default_workers("cpu", 8) == 0


def test_workers_that_are_not_forked_load_the_same() -> None:
    train = ICON_SHIFT_DEV.open(DataConfig(family="icon_shift_dev")).train.subset(range(5, 17))
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with loader_of(train, workers=1) as loader:
            by_worker = list(loader.steps(batches_of(train, seed=1), range(3)))
    finally:
        multiprocessing.set_start_method(before, force=True)
    by_this_process = loader_of(train).steps(batches_of(train, seed=1), range(3))
    for theirs, ours in zip(by_worker, by_this_process, strict=True):
        assert torch.equal(theirs.images, ours.images)
        assert torch.equal(theirs.index, ours.index)


def test_workers_are_sent_no_objects_by_the_row() -> None:
    """A million Python strings would be pickled for, or copied into, each worker."""
    names = [f"{number}.png" for number in range(50_000)]
    split = Split(
        ids=tuple(f"train/{name}" for name in names),
        labels=torch.zeros(len(names), dtype=torch.int64),
        source=Files(Path("/images"), pa.array(names), read_plain),
    )
    sent = loader_of(split.subset(range(0, 50_000, 2)))._views
    pickled: list[object] = []

    class Watched(pickle.Pickler):
        def persistent_id(self, item: object) -> None:
            pickled.append(item)

    Watched(io.BytesIO()).dump(sent)
    assert len(pickled) < 200


Batch = list[tuple[int, int]]
"""Of each item its index and the pass that its view is of."""


def grouped(sizes: Sequence[int], *, in_groups: bool = True) -> Split:
    names = tuple(f"group {place}" for place, size in enumerate(sizes) for _ in range(size))
    return numbered(len(names), groups=names if in_groups else None)


def drawn(
    split: Split,
    steps: range,
    *,
    batch_size: int = 2,
    seed: int = 5,
    balanced: bool = True,
    workers: int = 0,
) -> list[Batch]:
    plan = module.training_plan(
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
    for batch in drawn(split, range(7), batch_size=batch_size, seed=seed):
        assert Counter(groups[item] for item, _ in batch) == dict.fromkeys(groups, batch_size)
        for item, number in batch:
            streams[groups[item]].append((item, number))
    for name, stream in streams.items():
        members = [index for index, group in enumerate(groups) if group == name]
        for number in range(1, len(stream) // len(members) + 1):
            of_pass = stream[(number - 1) * len(members) : number * len(members)]
            assert {drawn_in for _, drawn_in in of_pass} == {number}
            assert sorted(item for item, _ in of_pass) == members


def test_a_small_group_comes_round_in_a_large_ones_first_pass_and_each_has_its_turn() -> None:
    """The parts that fit into memory are so as mixed as the whole."""
    pairs = [pair for batch in drawn(grouped([20, 3]), range(4)) for pair in batch]
    assert {number for item, number in pairs if item < 20} == {1}
    assert {number for item, number in pairs if item >= 20} == {1, 2, 3}
    (batch,) = drawn(grouped([5, 5, 5]), range(1))
    assert [item // 5 for item, _ in batch] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("balanced", [True, False])
def test_steps_are_the_same_wherever_one_begins_and_whatever_loads_them(*, balanced: bool) -> None:
    split, whole = grouped([7, 4]), drawn(grouped([7, 4]), range(9), balanced=balanced)
    for parts, workers in (([range(3), range(3, 4), range(4, 9)], 0), ([range(4, 9)], 2)):
        again = [drawn(split, part, balanced=balanced, workers=workers) for part in parts]
        assert [batch for part in again for batch in part] == whole[parts[0].start :]


def test_without_balance_all_items_are_one_stream_and_without_groups_there_is_none() -> None:
    batches = drawn(grouped([4, 3], in_groups=False), range(7), balanced=False)
    pairs = [pair for batch in batches for pair in batch]
    assert [item for item, _ in pairs[:7]] == shuffled(7, seed=5, epoch=1).tolist()
    assert [item for item, _ in pairs[7:]] == shuffled(7, seed=5, epoch=2).tolist()
    assert [number for _, number in pairs] == [1] * 7 + [2] * 7
    with pytest.raises(ValueError, match="no groups"):
        drawn(grouped([3], in_groups=False), range(1))
