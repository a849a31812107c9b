"""Batches of a split: the same ones in the same order, however many workers load them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from carft_core.data.base import Split
from carft_core.data.transforms import Transform
from carft_core.errors import RequestError

Loaded = tuple[Tensor, Tensor, Tensor]


class Draw(NamedTuple):
    """What is in a batch: indices into a split, and the epoch of each item's view; int64 [B]."""

    indices: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]


def batches(
    split: Split,
    *,
    batch_size: int,
    transform: Transform,
    seed: int | None,
    epoch: int,
    workers: int = 0,
    pin_memory: bool = False,
    indices: Sequence[int] | None = None,
) -> Iterator[Loaded]:
    """Go once through a split, or through its items at `indices`.

    Yields (images [B, 3, S, S] float32, labels [B] int64, indices into the split [B] int64); the
    last batch may be smaller, nothing is dropped. With `seed` None evaluation views in the given
    order, otherwise training views in an order drawn from (seed, epoch) alone. Neither the number
    of `workers` (processes) nor global random state changes anything, and none is consumed.
    Memory is pinned only where there is CUDA.

    Raises RequestError when an image cannot be used, also out of a worker.
    """
    chosen = np.arange(len(split)) if indices is None else np.asarray(indices, dtype=np.int64)
    if seed is not None:
        chosen = chosen[shuffled(len(chosen), seed=seed, epoch=epoch)]
    parts = [chosen[at : at + batch_size] for at in range(0, len(chosen), batch_size)]
    return load(
        split,
        [Draw(part, np.full(len(part), epoch)) for part in parts],
        transform=transform,
        seed=seed,
        workers=workers,
        pin_memory=pin_memory,
    )


def load(
    split: Split,
    draws: Sequence[Draw],
    *,
    transform: Transform,
    seed: int | None,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Loaded]:
    """The batches that are drawn, as `batches` says of its own."""
    views = _Views(split, transform, seed, draws)
    pin = pin_memory and torch.cuda.is_available()
    if workers > 0 and len(views) > 0:
        yield from _loaded_by_workers(views, min(workers, len(views)), pin)
        return
    for number in range(len(views)):
        images, labels, where = views.load(number)
        yield (images.pin_memory(), labels.pin_memory(), where) if pin else (images, labels, where)


def shuffled(count: int, *, seed: int, epoch: int, stream: int = 0) -> npt.NDArray[np.int64]:
    """A permutation of `range(count)`, a pure function of (seed, epoch, stream).

    It sorts raw output of Philox, whose stream numpy keeps fixed over versions and platforms,
    which it does not promise for `permutation`.
    """
    # Arrays of uint64, since a list of both small and large integers would go through float64.
    key = np.array([seed, 0], dtype=np.uint64)
    counter = np.array([0, 0, epoch, stream], dtype=np.uint64)
    order = np.argsort(np.random.Philox(key=key, counter=counter).random_raw(count), kind="stable")
    return order.astype(np.int64)


@dataclass(frozen=True)
class _Refused:
    """A RequestError on its way out of a worker: torch would bury its message in a traceback."""

    message: str


class _Views(Dataset[Loaded | _Refused]):
    """Whole batches as items of a data set: each is a pure function of its number."""

    def __init__(
        self,
        split: Split,
        transform: Transform,
        seed: int | None,
        draws: Sequence[Draw],
    ) -> None:
        self.split, self.transform, self.seed, self.draws = split, transform, seed, draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> Loaded | _Refused:
        try:
            return self.load(number)
        except RequestError as error:
            return _Refused(str(error))

    def load(self, number: int) -> Loaded:
        indices, epochs = self.draws[number]
        where = torch.from_numpy(indices)
        return self._images(indices, epochs), self.split.labels[where], where

    def _images(self, indices: npt.NDArray[np.int64], epochs: npt.NDArray[np.int64]) -> Tensor:
        """The views in their places; one call of the split for each epoch."""
        parts = [
            self.split.views(
                indices[epochs == epoch].tolist(),
                transform=self.transform,
                seed=self.seed,
                epoch=epoch,
            )
            for epoch in np.unique(epochs).tolist()
        ]
        if len(parts) == 1:
            return parts[0]
        places = np.argsort(np.argsort(epochs, kind="stable"))
        return torch.cat(parts)[torch.from_numpy(places)]


def _loaded_by_workers(views: _Views, workers: int, pin: bool) -> Iterator[Loaded]:
    with warnings.catch_warnings():
        # How many workers there are is the user's choice, also on a machine with fewer cores.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader: DataLoader[Loaded | _Refused] = DataLoader(
            views,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin,
            # Without one of its own the loader takes a number from torch's global generator.
            generator=torch.Generator(),
        )
        stream = iter(loader)
    try:
        for loaded in stream:
            if isinstance(loaded, _Refused):
                raise RequestError(loaded.message)
            images, labels, indices = loaded
            yield images, labels, indices
    finally:
        # The iterator ends its workers when it goes. An exception's traceback would keep it until
        # the garbage collector comes, and then each worker is waited for 5 seconds.
        del stream


def step_batches(
    split: Split,
    steps: range,
    *,
    batch_size: int,
    transform: Transform,
    seed: int,
    balanced: bool,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Loaded]:
    """The batches of some steps, as `carft_core.data.loader.batches` yields them.

    A stream goes through its items pass after pass, each pass in an order of its own, drawn from
    (seed, pass, stream) alone; an item's view is that of (seed, pass, item), and the first pass is
    number 1. With `balanced` each group of the split is a stream and a batch has `batch_size` items
    of each; else all items are one. A batch may straddle two passes. Step s takes what step s - 1
    has left, so that nothing but the number of the step says what is in a batch.

    Raises RequestError when an image cannot be used.
    """
    streams = _by_group(split) if balanced else [np.arange(len(split))]
    draws = [
        _joined([_drawn(items, at, step, batch_size, seed) for at, items in enumerate(streams)])
        for step in steps
    ]
    return load(
        split, draws, transform=transform, seed=seed, workers=workers, pin_memory=pin_memory
    )


def _by_group(split: Split) -> list[npt.NDArray[np.int64]]:
    """The items of each group, those of none together. Raises ValueError without groups."""
    if split.groups is None:
        raise ValueError("this split has no groups to balance")
    groups = np.array(split.groups)
    return [np.flatnonzero(groups == name) for name in dict.fromkeys(split.groups)]


def _drawn(items: npt.NDArray[np.int64], stream: int, step: int, count: int, seed: int) -> Draw:
    """What one stream of items gives to a step."""
    places = np.arange(step * count, (step + 1) * count)
    passes, within = places // len(items) + 1, places % len(items)
    orders = {int(one): _order(len(items), seed, int(one), stream) for one in np.unique(passes)}
    chosen = [orders[one][at] for one, at in zip(passes.tolist(), within.tolist(), strict=True)]
    return Draw(items[chosen], passes)


@functools.lru_cache(maxsize=32)
def _order(count: int, seed: int, number: int, stream: int) -> npt.NDArray[np.int64]:
    """Of one pass; steps that follow each other mostly want the same ones."""
    return shuffled(count, seed=seed, epoch=number, stream=stream)


def _joined(draws: Sequence[Draw]) -> Draw:
    """One of each stream in turn, so that the parts of a batch are as mixed as the whole."""
    return Draw(*(np.stack(parts, axis=1).ravel() for parts in zip(*draws, strict=True)))
