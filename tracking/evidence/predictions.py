"""Differences by class, and reliability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracking.comparison.compare import Row
from tracking.comparison.predictions import BINS, Tally
from tracking.comparison.statistics import mean

ID_SPLIT = "id/test"
MEAN = "ood/mean"
Seed = int | None
Tallies = Mapping[str, Tally]


@dataclass(frozen=True)
class ClassDifferences:
    """Of one row on one split, or on the mean of the shifts; NaN for a class that is not there."""

    row: Row
    split: str
    values: NDArray[np.float64]
    """[seeds, C] differences of per-class accuracies, as fractions."""
    images: NDArray[np.int64]
    """[C] how many images of a class there are, in one run."""


def class_differences(
    row: Row, ours: Mapping[Seed, Tallies], theirs: Mapping[Seed, Tallies]
) -> Iterator[ClassDifferences]:
    """The mean over shifts, the test split and every shift, by tallies of the common seeds.

    A row that no seed changes stands against each seed of the other; a split in which the two saw
    other images is left out.
    """
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if not row.arm.has_seeds and ours:
        pairs = [(next(iter(ours.values())), other) for other in theirs.values()]
    if not pairs:
        return
    splits = [name for name in pairs[0][0] if name == ID_SPLIT or name.startswith("ood/")]
    found = {}
    for split in sorted(splits):
        values = [_difference(one.get(split), two.get(split)) for one, two in pairs]
        known = [value for value in values if value is not None]
        if len(known) == len(pairs):
            images = pairs[0][0][split].images
            found[split] = ClassDifferences(row, split, _stacked(known), images)
    outside = row.arm.done[0].outside_means | {ID_SPLIT}
    shifts = [part for split, part in found.items() if split not in outside]
    if shifts:
        yield _mean(row, shifts)
    yield from found.values()


def _mean(row: Row, shifts: Sequence[ClassDifferences]) -> ClassDifferences:
    """Each shift that has a class counts the same."""
    width = max(part.values.shape[1] for part in shifts)
    layers = np.stack([_padded(part.values, width) for part in shifts])
    there = ~np.isnan(layers)
    count = there.sum(axis=0)
    total = np.where(there, layers, 0.0).sum(axis=0)
    values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    images = sum(np.pad(part.images, (0, width - len(part.images))) for part in shifts)
    return ClassDifferences(row, MEAN, values, np.asarray(images))


def _difference(one: Tally | None, two: Tally | None) -> NDArray[np.float64] | None:
    if one is None or two is None:
        return None
    width = max(len(one.images), len(two.images))
    images, hits = (
        [np.pad(part, (0, width - len(part))) for part in parts]
        for parts in ((one.images, two.images), (one.hits, two.hits))
    )
    if not np.array_equal(images[0], images[1]):
        return None
    return np.where(images[0] > 0, (hits[0] - hits[1]) / np.maximum(images[0], 1), np.nan)


def _stacked(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    width = max(map(len, values))
    return np.concatenate([_padded(value[None], width) for value in values])


def _padded(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    padding = ((0, 0), (0, width - values.shape[1]))
    return np.pad(values, padding, constant_values=np.nan)


@dataclass(frozen=True)
class Bin:
    """Images of like confidence, all runs together; shares and means are fractions."""

    low: float
    high: float
    share: float
    """Of the images; each shift counts the same."""
    confidence: float
    accuracy: float
    images: int
    """In all runs and splits."""


@dataclass(frozen=True)
class Reliability:
    """One row on `id/test` or `ood/mean`; empty bins are left out."""

    row: Row
    where: str
    ece: float
    """The metric `<where>/ece`, mean over runs."""
    bins: tuple[Bin, ...]


def reliability(row: Row, runs: Sequence[Tallies]) -> Iterator[Reliability]:
    """On the test split and on the mean of the shifts, from the tallies of every finished run."""
    outside = row.arm.done[0].outside_means
    shifts = [name for name in runs[0] if name.startswith("ood/") and name not in outside]
    for where in (ID_SPLIT, MEAN):
        splits = shifts if where == MEAN else [name for name in runs[0] if name == where]
        if splits and all(name in run for run in runs for name in splits):
            parts = [run[name] for run in runs for name in splits]
            yield Reliability(row, where, mean([part.ece for part in parts]), _bins(runs, splits))


def _bins(runs: Sequence[Tallies], splits: Sequence[str]) -> tuple[Bin, ...]:
    parts = [run[name] for run in runs for name in splits]
    share, hits, confidence = (
        np.mean([counts / part.binned.sum() for part, counts in each], axis=0)
        for each in (
            [(part, part.binned) for part in parts],
            [(part, part.binned_hits) for part in parts],
            [(part, part.confidence) for part in parts],
        )
    )
    images = np.sum([part.binned for part in parts], axis=0)
    return tuple(
        Bin(
            low=i / BINS,
            high=(i + 1) / BINS,
            share=float(share[i]),
            confidence=float(confidence[i] / share[i]),
            accuracy=float(hits[i] / share[i]),
            images=int(images[i]),
        )
        for i in range(BINS)
        if images[i]
    )
