"""Batches of splits by number: the same ones in the same order, however many workers load them."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from carft_sweep.carft_core.data.bank import Bank
from carft_sweep.carft_core.data.base import Source, Split
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.training.ranks import World

MOST_WORKERS = 16


def default_workers(device_type: str, cores: int) -> int:
    """Return the number of worker processes for `workers: auto`: all of a run's `cores` but one
    beside a GPU, at most 16; else 0, since the cores compute."""
    return max(1, min(cores - 1, MOST_WORKERS)) if device_type == "cuda" else 0


class BatchIndices(NamedTuple):
    """A batch's rows of a split, and the pass (epoch) that each row's view is of; int64 [B]."""

    rows: NDArray[np.int64]
    passes: NDArray[np.int64]


BatchPlan = Callable[[int], BatchIndices]
"""Returns what is in the batch of a step, from the number of the step alone."""


def shuffled(count: int, *, seed: int, epoch: int, stream: int = 0) -> NDArray[np.int64]:
    """Return a permutation of `range(count)`, a pure function of (seed, epoch, stream). The
    permutation sorts raw output of Philox, whose stream numpy keeps fixed over versions and
    platforms, unlike that of `permutation`."""
    # Arrays of uint64, since a list of both small and large integers would go through float64.
    key = np.array([seed, 0], dtype=np.uint64)
    counter = np.array([0, 0, epoch, stream], dtype=np.uint64)
    order = np.argsort(np.random.Philox(key=key, counter=counter).random_raw(count), kind="stable")
    return order.astype(np.int64)


# Of a million rows an order is 10 MB, and steps that follow each other want the same ones.
_order_of_all = functools.lru_cache(maxsize=2)(shuffled)
_order_of_group = functools.lru_cache(maxsize=32)(shuffled)


@dataclass(frozen=True)
class EpochPlan:
    """A plan of passes over `count` rows; the last batch of a pass may be short, none is dropped.

    The order of a pass is drawn from (seed, pass) alone, and its views are of that pass; the first
    is number 1. With `seed` None the rows come in their own order, as in evaluation.
    """

    count: int
    batch_size: int
    seed: int | None = None

    @property
    def steps(self) -> int:
        """The number of steps of a pass over the split."""
        return math.ceil(self.count / self.batch_size)

    def __call__(self, step: int) -> BatchIndices:
        number, place = divmod(step, self.steps)
        rows = np.arange(place * self.batch_size, min((place + 1) * self.batch_size, self.count))
        if self.seed is not None:
            rows = _order_of_all(self.count, seed=self.seed, epoch=number + 1)[rows]
        return BatchIndices(rows, np.full(len(rows), number + 1))


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """A plan of batches with `batch_size` rows of each of `groups`, each an endless stream of rows.

    A stream goes through its rows pass after pass, each in an order of its own, drawn from (seed,
    pass, stream) alone, and a batch may straddle two passes. Step s takes what step s - 1 has left.
    """

    groups: tuple[NDArray[np.int64], ...]
    batch_size: int
    seed: int

    def __call__(self, step: int) -> BatchIndices:
        """Return the batch of a step, with rows of each stream in turn, so that parts of the batch
        are as mixed as the whole."""
        draws = [self._of_stream(stream, step) for stream in range(len(self.groups))]
        return BatchIndices(
            *(np.stack(parts, axis=1).ravel() for parts in zip(*draws, strict=True))
        )

    def _of_stream(self, stream: int, step: int) -> BatchIndices:
        rows = self.groups[stream]
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        passes, within = places // len(rows) + 1, places % len(rows)
        chosen = np.empty_like(places)
        order = _order_of_all if len(self.groups) == 1 else _order_of_group
        for number in np.unique(passes).tolist():
            inside = passes == number
            of_pass = order(len(rows), seed=self.seed, epoch=number, stream=stream)
            chosen[inside] = rows[of_pass[within[inside]]]
        return BatchIndices(chosen, passes)


@dataclass(frozen=True)
class RankPlan:
    """The rows that one rank loads of each batch of `plan`."""

    plan: BatchPlan
    world: World

    def __call__(self, step: int) -> BatchIndices:
        rows, passes = self.plan(step)
        return BatchIndices(self.world.shard(rows), self.world.shard(passes))


def training_plan(
    split: Split, *, batch_size: int, seed: int, balanced: bool, whole_passes: bool
) -> BatchPlan:
    """Return the plan of a run's training batches: equally many rows of each group of `split`
    (`balanced`), whole passes over the split (`whole_passes`), or one endless stream. Raises
    ValueError where a split without groups is to be balanced."""
    if balanced:
        if split.domains is None:
            raise ValueError("this split has no groups to balance")
        domains = split.domains.numpy()
        groups = tuple(np.flatnonzero(domains == number) for number in np.unique(domains))
        return StreamPlan(groups, batch_size, seed)
    if whole_passes:
        return EpochPlan(len(split), batch_size, seed)
    return StreamPlan((np.arange(len(split)),), batch_size, seed)


@dataclass(frozen=True)
class BatchSource:
    """Batches of a split by number: batch `step` is a pure function of (`plan`, `seed`, step)."""

    split: str
    """The split's name in the loader."""
    plan: BatchPlan
    seed: int | None
    """None: evaluation views."""
    bank: Bank | None = field(default=None, compare=False)
    """Where the views are kept for others that load the same batches."""


BatchRange = tuple[BatchSource, range]
"""Batches by number, and the steps whose batches are to be loaded."""


class LoadedBatch(NamedTuple):
    """A batch as the loader yields it, on the CPU."""

    images: Tensor
    """[B, 3, S, S] uint8."""
    labels: Tensor
    """[B] int64."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    """[B] int64, rows of the split."""
    domain: Tensor | None
    """[B] int64, numbers of the groups as in `Split.domains`, where the split has groups."""


class _Task(NamedTuple):
    """All that a worker is sent for a batch."""

    split: str
    step: int
    draw: BatchIndices
    seed: int | None
    bank: Bank | None

    @property
    def rows(self) -> Tensor:
        """The rows of the batch, [B] int64."""
        return torch.from_numpy(self.draw.rows)


def _tasks_of(part: BatchRange) -> Iterator[_Task]:
    batches, steps = part
    for step in steps:
        yield _Task(batches.split, step, batches.plan(step), batches.seed, batches.bank)


class _Images(NamedTuple):
    """Where the images of a split come from."""

    source: Source
    rows: NDArray[np.int64] | None
    """As in `Split.rows`."""


@dataclass(frozen=True, eq=False)
class _Views(Dataset["Tensor | RequestError"]):
    """The data set that a worker starts with; its items are whole batches of views, by task."""

    splits: Mapping[str, _Images]
    transform: Transform

    def __getitem__(self, task: _Task) -> Tensor | RequestError:
        try:
            return self.load(task)
        except RequestError as error:  # returned: torch would bury its message in a traceback
            return RequestError(str(error))

    def load(self, task: _Task) -> Tensor:
        """Return the views of a batch: from the bank, or made and stored in the bank."""
        bank = task.bank
        views = None if bank is None else bank.read(task.step, task.rows)
        if views is None:
            views = self._make(task)
            if bank is not None:
                bank.write(task.step, task.rows, views)
        return views

    def _make(self, task: _Task) -> Tensor:
        """Return the views of a batch, made with a call of the source for each pass in it."""
        drawn, passes = task.draw
        source, whole = self.splits[task.split]
        rows = drawn if whole is None else whole[drawn]
        parts = [
            source.views(
                rows[passes == number].tolist(),
                transform=self.transform,
                seed=task.seed,
                epoch=number,
            )
            for number in np.unique(passes).tolist()
        ]
        if len(parts) == 1:
            return parts[0]
        places = np.argsort(np.argsort(passes, kind="stable"))
        return torch.cat(parts)[torch.from_numpy(places)]


class _Tasks(Sampler[_Task]):
    """The sampler of the tasks that workers are sent; `coming` is replaced while workers live."""

    def __init__(self) -> None:
        self.coming: Iterator[_Task] = iter(())

    def __iter__(self) -> Iterator[_Task]:
        return self.coming


class Loader:
    """A loader of batches of some splits, to train and to evaluate, with `workers` processes.

    Batches depend neither on the number of workers nor on global random state, of which none is
    consumed. Workers start with the first call of `steps`, and serve all splits until the outermost
    `with` of the loader ends. Memory is pinned only where there is CUDA.
    """

    def __init__(
        self,
        splits: Mapping[str, Split],
        *,
        transform: Transform,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._splits, self._workers = splits, workers
        images = {name: _Images(split.source, split.rows) for name, split in splits.items()}
        self._views = _Views(images, transform)
        self._pin = pin_memory and torch.cuda.is_available()
        self._users = 0
        self._expected: deque[BatchRange] = deque()
        self._between = False
        """Whether a part was loaded to its end, and the workers load what is expected next."""
        self._tasks = _Tasks()
        self._returning: Iterator[_Task] = iter(())
        """A second iterator over the workers' tasks, advanced as their batches come back."""
        self._loader: DataLoader[Tensor | RequestError] | None = None
        # The only reference to the iterator: it ends its workers when it goes, and an exception's
        # traceback would keep one that a frame holds.
        self._stream: Iterator[Tensor | RequestError] | None = None

    def expect(self, parts: Iterable[BatchRange]) -> None:
        """Announce the next calls of `steps` in order, so that workers load the next part while the
        one before is used. Other calls get the same batches, later."""
        if self._workers:
            self._expected, self._between = deque(parts), False

    def steps(self, batches: BatchSource, steps: range) -> Iterator[LoadedBatch]:
        """Yield the batches of some steps. With workers a call ends the iteration of the call
        before. Raises RequestError for an unusable image, also from a worker."""
        if self._workers == 0:
            for task in _tasks_of((batches, steps)):
                yield self._loaded(task, self._views.load(task))
            return
        part = batches, steps
        if not self._between or not self._expected or self._expected[0] != part:
            self._restart(part)
        self._expected.popleft()
        self._between, tasks = False, self._returning
        for _ in steps:
            if self._stream is None or self._returning is not tasks:
                raise RuntimeError("the loader was closed, or loads other batches by now")
            task, item = next(tasks), next(self._stream)
            if isinstance(item, RequestError):
                self.close()
                raise item
            yield self._loaded(task, item)
        if self._returning is tasks:
            self._between = True

    def close(self) -> None:
        """End the workers."""
        self._loader = self._stream = None
        self._between = False
        self._expected.clear()

    def __enter__(self) -> Self:
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self.close()

    def _restart(self, part: BatchRange) -> None:
        """Make the workers load a part, and then the announced parts."""
        if part in self._expected:
            while self._expected[0] != part:
                self._expected.popleft()
        else:
            self._expected.appendleft(part)
        tasks = itertools.chain.from_iterable(map(_tasks_of, [*self._expected]))
        self._tasks.coming, self._returning = itertools.tee(tasks)
        with warnings.catch_warnings():
            # How many workers there are is the user's choice, also on a machine with fewer cores.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            if self._loader is None:
                self._loader = DataLoader(
                    self._views,
                    batch_size=None,
                    sampler=self._tasks,
                    num_workers=self._workers,
                    persistent_workers=True,
                    pin_memory=self._pin,
                    # Without its own the loader takes a number from torch's global generator.
                    generator=torch.Generator(),
                )
            self._stream = iter(self._loader)

    def _loaded(self, task: _Task, images: Tensor) -> LoadedBatch:
        split, rows = self._splits[task.split], task.rows
        labels = split.labels[rows]
        domain = None if split.domains is None else split.domains[rows]
        return LoadedBatch(images, labels, rows, domain)
