"""Batches of a split: the same ones in the same order, however many workers load them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from carft_core.data.base import Split, Transform
from carft_core.errors import RequestError

Loaded = tuple[Tensor, Tensor, Tensor]


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
    starts = range(0, len(chosen), batch_size)
    views = _Views(split, transform, seed, epoch, [chosen[at : at + batch_size] for at in starts])
    pin = pin_memory and torch.cuda.is_available()
    if workers > 0 and len(views) > 0:
        yield from _loaded_by_workers(views, min(workers, len(views)), pin)
        return
    for number in range(len(views)):
        images, labels, where = views.load(number)
        yield (images.pin_memory(), labels.pin_memory(), where) if pin else (images, labels, where)


def shuffled(count: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of `range(count)`, a pure function of (seed, epoch).

    It sorts raw output of Philox, whose stream numpy keeps fixed over versions and platforms,
    which it does not promise for `permutation`.
    """
    # Arrays of uint64, since a list of both small and large integers would go through float64.
    key = np.array([seed, 0], dtype=np.uint64)
    stream = np.random.Philox(key=key, counter=np.array([0, 0, epoch, 0], dtype=np.uint64))
    order = np.argsort(stream.random_raw(count), kind="stable")
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
        epoch: int,
        batches: Sequence[npt.NDArray[np.int64]],
    ) -> None:
        self.split, self.transform, self.seed, self.epoch = split, transform, seed, epoch
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Loaded | _Refused:
        try:
            return self.load(number)
        except RequestError as error:
            return _Refused(str(error))

    def load(self, number: int) -> Loaded:
        indices = torch.from_numpy(self.batches[number])
        images = self.split.views(
            indices.tolist(), transform=self.transform, seed=self.seed, epoch=self.epoch
        )
        return images, self.split.labels[indices], indices


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
