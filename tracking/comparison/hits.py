"""Which test images a model has right, counted by unit, and what other images would change.

A unit is what images were sampled by: an image itself, or in IconShift a drawing with all of its
views, in several shifts too. A metric over sampled images estimates that over all images with an
error of its own, which does not shrink with more seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from carft_sweep.tracking.comparison.metrics import OOD, TOP1
from carft_sweep.tracking.comparison.predictions import (
    coded,
    numbers,
    predictions_path,
    read_columns,
)
from carft_sweep.tracking.comparison.runs import Arm, RunRecord, largest_image_step
from carft_sweep.tracking.comparison.statistics import ImageError, PairedTest
from carft_sweep.tracking.errors import TrackingError

GROUPS = 100
"""Groups of units that the jackknife leaves out in turn: more change the variance little."""


@dataclass(frozen=True, eq=False)
class Hits:
    """The numbers of right and of all images of one model, by unit and split."""

    units: NDArray[np.str_]
    """[U] names of the units, sorted."""
    splits: tuple[str, ...]
    """[S] names such as `id/test` and `ood/outline`."""
    right: NDArray[np.int32]
    """[U, S] number of images that are classified correctly."""
    images: NDArray[np.int32]
    """[U, S] number of images."""
    outside: frozenset[int] = frozenset()
    """Columns of shifts that are in no mean."""
    tasks: tuple[int, ...] = ()
    """[S] the task that a split belongs to, of a mean over several tasks."""

    def weights(self, metric: str) -> NDArray[np.float64] | None:
        """Return the weights [S] with which a metric averages the accuracies of the splits. None
        for a metric that is no mean of accuracies, or uses a split without predictions."""
        split, _, kind = metric.rpartition("/")
        if kind != TOP1:
            return None
        weights = np.zeros(len(self.splits))
        tasks = self.tasks or (0,) * len(self.splits)
        for task in {*tasks}:
            own = [
                column
                for column, name in enumerate(self.splits)
                if tasks[column] == task
                and (
                    name.startswith("ood/") and column not in self.outside
                    if metric == OOD
                    else name == split
                )
            ]
            if not own:
                return None
            weights[own] = 1 / (len(own) * len({*tasks}))
        return weights

    def same_images(self, other: Hits) -> bool:
        """Return whether two models have the same units, images and splits."""
        return (
            self.splits == other.splits
            and _equal(self.units, other.units)
            and _equal(self.images, other.images)
        )

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Number of images of each split, [S]."""
        total: NDArray[np.int64] = self.images.sum(axis=0)
        return total


def _equal(one: NDArray[Any], two: NDArray[Any]) -> bool:
    return one is two or np.array_equal(one, two)


def read_hits(run: RunRecord, merge: str | None) -> Hits | None:
    """Return the hits of a run's model, unmerged or `merge`; None where the run has no predictions.
    Raises TrackingError for an invalid file."""
    if run.parts:
        return _joined([read_hits(part, merge) for part in run.parts.values()])
    path = None if run.folder is None else predictions_path(run.folder, merge)
    if path is None or not path.is_file():
        return None
    table = read_columns(path, ("split", "unit", "label", "prediction"))
    right = numbers(table["label"]) == numbers(table["prediction"])
    (splits, column), (units, row) = coded(table["split"]), coded(table["unit"])
    shape = (len(units), len(splits))
    cell, cells = row * len(splits) + column, len(units) * len(splits)
    return Hits(
        units,
        tuple(map(str, splits)),
        np.bincount(cell[right], minlength=cells).astype(np.int32).reshape(shape),
        np.bincount(cell, minlength=cells).astype(np.int32).reshape(shape),
        frozenset(n for n, split in enumerate(splits) if split in run.outside_means),
    )


def _joined(parts: Sequence[Hits | None]) -> Hits | None:
    """Return the hits of models of several tasks as one; None where hits of a task are missing."""
    from scipy.linalg import block_diag

    every = [part for part in parts if part is not None]
    if not every or len(every) < len(parts):
        return None
    names = [[f"{task:03d}/{unit}" for unit in part.units] for task, part in enumerate(every)]
    columns = [(part, column) for part in every for column in range(len(part.splits))]
    return Hits(
        np.array([name for own in names for name in own], np.str_),
        tuple(split for part in every for split in part.splits),
        block_diag(*(part.right for part in every)),
        block_diag(*(part.images for part in every)),
        frozenset(n for n, (part, column) in enumerate(columns) if column in part.outside),
        tuple(task for task, part in enumerate(every) for _ in part.splits),
    )


HitsReader = Callable[[RunRecord, str | None], Hits | None]


class KeptHits:
    """Reader of the hits of a comparison's models, which reads each model's file once."""

    def __init__(self, read: HitsReader = read_hits) -> None:
        """Keep `read`, the function that reads the hits of a model of a run."""
        self.read = read
        self._by_model: dict[tuple[str, str | None], Hits | None] = {}
        self._last: Hits | None = None
        self.unreadable: dict[str, None] = {}
        """Messages on files that could not be read, as keys."""

    def of(self, run: RunRecord, merge: str | None) -> Hits | None:
        """Return the hits of a run's model, unmerged or `merge`; None without predictions."""
        key = (run.digest, merge)
        if key not in self._by_model:
            try:
                hits = self.read(run, merge)
            except TrackingError as error:
                self.unreadable[str(error)] = None
                hits = None
            if hits is not None and self._last is not None and hits.same_images(self._last):
                # Of large data sets the names of units are most of it.
                hits = replace(hits, units=self._last.units, images=self._last.images)
            self._by_model[key] = self._last = hits
        return self._by_model[key]

    def by_seed(self, arm: Arm, seeds: Sequence[int | None]) -> list[Hits] | None:
        """Return the hits of an arm's runs, one for each of `seeds`; None where a run or hits are
        missing. An arm that no seed changes uses its single run for each seed."""
        runs = {run.seed: run for run in arm.done}
        own = [runs.get(seed if arm.has_seeds else None) for seed in seeds]
        kept = [None if run is None else self.of(run, arm.merge) for run in own]
        present = [hits for hits in kept if hits is not None]
        return present if present and len(present) == len(kept) else None

    def paired_test(
        self,
        differences: Iterable[float],
        pairs: Sequence[tuple[Arm, Arm]],
        seeds: Sequence[int | None],
        metric: str,
    ) -> PairedTest:
        """Return the test of `differences`, one a seed, with the error over images. Of several
        `pairs` of arms, `differences` are means over the pairs."""
        step = largest_image_step((arm for pair in pairs for arm in pair), metric) / len(pairs)
        test = PairedTest(tuple(differences), step)
        if not test.spreads:
            return test
        return replace(test, images=self.difference_error(pairs, seeds, metric))

    def difference_error(
        self, pairs: Sequence[tuple[Arm, Arm]], seeds: Sequence[int | None], metric: str
    ) -> ImageError | None:
        """Return the error over images of the difference of two arms, mean over seeds.

        Of several pairs, return the error of the mean of their differences. The variance allows for
        similar images of one unit: Liang and Zeger, Biometrika 73 (1986). It is the floor, which
        more seeds do not reduce (`ImageError.floor`). None for a metric other than top-1, without
        predictions, or with those of different images.
        """
        if not metric.endswith(f"/{TOP1}"):
            return None
        influences, counts = [], [0]
        for pair in pairs:
            one, two = (self.by_seed(arm, seeds) for arm in pair)
            if one is None or two is None:
                return None
            for candidate, reference in zip(one, two, strict=True):
                weights = candidate.weights(metric)
                if weights is None or not candidate.same_images(reference):
                    return None
                influences.append((candidate.units, *_influence(candidate, reference, weights)))
                counts.append(int(candidate.sizes[weights > 0].sum()))
        names, place = _aligned([units for units, _, _ in influences])
        by_seed, seen = np.zeros((len(seeds), len(names))), np.zeros(len(names), bool)
        for number, (rows, (_, influence, is_measured)) in enumerate(
            zip(place, influences, strict=True)
        ):
            by_seed[number % len(seeds), rows] += influence / len(pairs)
            seen[rows] |= is_measured
        units = int(seen.sum())
        if units < 2:
            return None
        mean = by_seed.mean(axis=0)
        scale = units / (units - 1)
        return ImageError.floor(
            scale * float(mean @ mean),
            scale * float((by_seed**2).sum()) / len(seeds),
            len(seeds),
            freedom=units - 1,
            units=units,
            images=max(counts),
        )


def _influence(
    one: Hits, two: Hits, weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the influence [U] of each unit on the difference of the metrics of models `one` and
    `two`, and whether the unit has images [U]. `weights` [S] are those of the metric."""
    used = weights > 0
    difference = one.right[:, used] - two.right[:, used]
    images, sizes = one.images[:, used], one.sizes[used]
    means = difference.sum(axis=0) / sizes
    influence: NDArray[np.float64] = ((difference - means * images) / sizes) @ weights[used]
    is_measured: NDArray[np.bool_] = images.sum(axis=1) > 0
    return influence, is_measured


def _aligned(every: Sequence[NDArray[np.str_]]) -> tuple[NDArray[np.str_], list[NDArray[np.intp]]]:
    """Return the distinct units of all models, and for each model its units' positions."""
    first = every[0]
    if all(_equal(units, first) for units in every):
        return first, [np.arange(len(first))] * len(every)
    names = np.unique(np.concatenate(every))
    return names, [np.searchsorted(names, units) for units in every]


def leave_out(
    every: Sequence[Hits | None], id_metric: str, ood_metric: str
) -> tuple[list[tuple[NDArray[np.float64], NDArray[np.float64]]], int, int] | None:
    """Return for each model its ID and OOD accuracies [G], with each group of units left out in
    turn (a jackknife): at most `GROUPS` groups, the same for all models. Then the numbers of units
    and images. None where a model has no predictions, a metric is no mean of accuracies, or a split
    has one unit."""
    models = [hits for hits in every if hits is not None]
    axes = [(hits.weights(id_metric), hits.weights(ood_metric)) for hits in models]
    if len(models) < len(every) or any(weights is None for pair in axes for weights in pair):
        return None
    names, place = _aligned([hits.units for hits in models])
    used = np.zeros(len(names), bool)
    smallest, images_seen = len(names), 0
    images: NDArray[Any] = np.zeros(0)
    for hits, rows, pair in zip(models, place, axes, strict=True):
        if hits.images is images:  # as of most models
            continue
        images = hits.images
        columns = sum(weights for weights in pair if weights is not None) > 0
        measured = hits.images[:, columns] > 0
        images_seen = max(images_seen, int(hits.sizes[columns].sum()))
        used[rows] |= measured.any(axis=1)
        smallest = min(smallest, int(measured.sum(axis=0).min()))
    groups = min(GROUPS, smallest)
    if groups < 2:
        return None
    group = _groups(names, models[0], groups)
    left_out = []
    counted: tuple[NDArray[Any], NDArray[Any]] = np.zeros(0), np.zeros(0)
    for hits, rows, (of_id, of_ood) in zip(models, place, axes, strict=True):
        if not (_equal(hits.images, counted[0]) and _equal(rows, counted[1])):
            counted = hits.images, rows
            remaining = hits.sizes - _by_group(hits.images, group[rows], groups)
            remaining = np.maximum(remaining, 1)  # a split without images is in neither metric
        right = _by_group(hits.right, group[rows], groups)
        accuracies = (right.sum(axis=0) - right) / remaining
        left_out.append((accuracies @ of_id, accuracies @ of_ood))
    return left_out, int(used.sum()), images_seen


def _by_group(
    table: NDArray[np.int32], group: NDArray[np.intp], groups: int
) -> NDArray[np.float64]:
    """Return the sums of the rows [U, S] of `table` over each group: [G, S]."""
    splits = table.shape[1]
    cells = group[:, None] * splits + np.arange(splits)
    sums = np.bincount(cells.ravel(), weights=table.ravel(), minlength=groups * splits)
    return np.asarray(sums, np.float64).reshape(groups, splits)


def _groups(names: NDArray[np.str_], hits: Hits, groups: int) -> NDArray[np.intp]:
    """Return the group [U] of each of the units `names`, by a hash of the name, so that each group
    has its share of the units that occur in the same splits of `hits`."""
    patterns: Mapping[str, bytes] = dict(
        zip(hits.units.tolist(), map(bytes, (hits.images > 0).astype(np.uint8)), strict=True)
    )
    order = sorted(
        range(len(names)),
        key=lambda row: (patterns.get(str(names[row]), b""), crc32(str(names[row]).encode())),
    )
    group = np.empty(len(names), np.intp)
    group[order] = np.arange(len(names)) % groups
    return group
