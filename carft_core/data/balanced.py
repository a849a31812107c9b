"""Training batches by step, out of streams without end: of each group as many images, or of all."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from carft_core.data.base import Split, Transform
from carft_core.data.loader import Draw, Loaded, load, shuffled


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
