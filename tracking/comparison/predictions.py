"""The predictions of runs: which images are right, counts, votes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from tracking.comparison.metrics import OOD
from tracking.comparison.runs import Arm, RunRecord
from tracking.comparison.statistics import (
    RESAMPLES,
    Interval,
    cluster_bootstrap,
    percentile_interval,
)
from tracking.errors import TrackingError

if TYPE_CHECKING:
    import pyarrow as pa


UNMERGED = "unmerged"
COLUMNS = ("split", "id", "unit", "label", "prediction")


@dataclass(frozen=True)
class Hits:
    """Which items of every measured split are classified correctly, in a fixed order."""

    split: NDArray[np.str_]
    """[N] `id/val`, `id/test` or `ood/<shift>`."""
    item: NDArray[np.str_]
    unit: NDArray[np.str_]
    value: NDArray[np.float64]
    """[N] 1 where correct; over several runs the share of them; a difference between arms."""
    outside: frozenset[str] = frozenset()
    """Splits that are in no mean."""

    def same_items(self, other: Hits) -> bool:
        """Whether both speak of the same images."""
        return np.array_equal(self.split, other.split) and np.array_equal(self.item, other.item)


def predictions_path(folder: Path, merge: str | None) -> Path:
    """Where a run keeps the predictions of its unmerged model or of a merge."""
    return folder / "evaluations" / (merge or UNMERGED) / "predictions.parquet"


def read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    """These columns of kept predictions. Raises TrackingError for a file that has them not."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path, columns=list(names))
        return table.select(list(names))
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise TrackingError(
            f"{path} holds no predictions ({' '.join(str(error).split())}); remove the folder "
            f"{path.parent}, and the next `carft-sweep run` of the sweep evaluates the model again"
        ) from None


def read_hits(path: Path) -> Hits:
    """The items of all splits. Raises TrackingError for a file that is none."""
    table = read_columns(path, COLUMNS)
    column = {name: table[name].to_numpy() for name in COLUMNS}
    names, which = np.unique(column["split"].astype(np.str_), return_inverse=True)
    split = np.array([_metric_prefix(str(name)) for name in names], dtype=np.str_)[which]
    item = column["id"].astype(np.str_)
    order = np.lexsort((item, split))
    return Hits(
        split=split[order],
        item=item[order],
        unit=column["unit"].astype(np.str_)[order],
        value=(column["prediction"] == column["label"])[order].astype(np.float64),
    )


def arm_hits(runs: Sequence[RunRecord], merge: str | None) -> Hits | None:
    """The mean over the runs; None where a run keeps no predictions or they see other images."""
    paths = [predictions_path(run.folder, merge) for run in runs if run.folder is not None]
    if not paths or len(paths) < len(runs) or not all(path.is_file() for path in paths):
        return None
    hits = [read_hits(path) for path in paths]
    first = hits[0]
    if not all(first.same_items(other) for other in hits):
        return None
    value = np.mean([other.value for other in hits], axis=0)
    return Hits(first.split, first.item, first.unit, value, runs[0].outside_means)


def difference(first: Hits, second: Hits) -> Hits | None:
    """Item by item, for the paired bootstrap; None where they speak of other images."""
    if not first.same_items(second):
        return None
    apart = first.value - second.value
    return Hits(first.split, first.item, first.unit, apart, first.outside)


def intervals(hits: Hits, *, resamples: int = RESAMPLES, seed: int = 0) -> Mapping[str, Interval]:
    """95 % percentile intervals over units of every split's top-1, and of `ood/mean/top1`.

    They hold the trained weights fixed: how much another draw of images would change the number.
    """
    splits, column = np.unique(hits.split, return_inverse=True)
    units, row = np.unique(hits.unit, return_inverse=True)
    if len(units) == 0:
        return {}
    shape = (len(units), len(splits))
    cell = row * len(splits) + column
    cells = len(units) * len(splits)
    totals = np.bincount(cell, weights=hits.value, minlength=cells).astype(np.float64)
    counts = np.bincount(cell, minlength=cells).astype(np.int64)
    draws = cluster_bootstrap(
        totals.reshape(shape), counts.reshape(shape), resamples=resamples, seed=seed
    )
    found = {
        f"{name}/top1": percentile_interval(draws[:, place]) for place, name in enumerate(splits)
    }
    shifts = np.char.startswith(splits, "ood/") & ~np.isin(splits, sorted(hits.outside))
    if shifts.any():
        found[OOD] = percentile_interval(draws[:, shifts].mean(axis=1))
    return found


def _metric_prefix(split: str) -> str:
    """`test` as `id/test` and `shift/x` as `ood/x`: the names that metrics begin with."""
    if split in ("val", "test"):
        return f"id/{split}"
    kind, _, name = split.partition("/")
    return f"ood/{name}" if kind in ("shift", "shifts") else split


EACH_WAY = 12
"""Most images that one of the two kept and the other lost, and as many the other way round."""
Keeper = Literal["candidate", "reference"]


@dataclass(frozen=True)
class Counts:
    """The images of one split that zero-shot had right, by who kept them."""

    split: str
    right: int
    both: int
    candidate: int
    """Kept by the candidate alone."""
    reference: int
    """Kept by the reference alone."""
    neither: int


@dataclass(frozen=True)
class Answer:
    """What the runs of an arm say of an image."""

    right: int
    """Runs that have it right."""
    of: int
    wrong: int | None
    """The class that they most often take it for, where they are wrong; None: nowhere."""


@dataclass(frozen=True)
class Picture:
    """One image to show."""

    split: str
    item: str
    label: int
    kept_by: Keeper
    zero_shot: Answer
    reference: Answer
    candidate: Answer


@dataclass(frozen=True)
class Gallery:
    """The four cells of every split, and images of the two in which the models differ."""

    candidate: str
    reference: str
    counts: tuple[Counts, ...]
    """Of the test split and the shifts."""
    pictures: tuple[Picture, ...]
    """Of the shifts: those that the candidate kept first."""


def pick(
    candidate: Arm,
    reference: Arm,
    zero_shot: RunRecord,
    seeds: Sequence[int | None],
    *,
    each_way: int = EACH_WAY,
) -> Gallery | None:
    """What became of the images that `zero_shot` had right, over the runs with these seeds.

    An arm keeps an image when more than half of its runs have it right, else it has lost it. Of
    the two cells in which the arms differ, up to `each_way` images each: in turn from every
    shift, the clearest first, one of each unit, and else in an order that only the names of the
    images decide. None where predictions were not kept, or are of other images. Raises OSError or
    pyarrow's errors for files that are none.
    """
    runs = {
        "candidate": [run for run in candidate.done if run.seed in seeds],
        "reference": [run for run in reference.done if run.seed in seeds],
    }
    first = _read([zero_shot], None)
    ours = _read(runs["candidate"], candidate.merge)
    theirs = _read(runs["reference"], reference.merge)
    if first is None or ours is None or theirs is None:
        return None
    if not (first.same_items(ours) and first.same_items(theirs)):
        return None
    votes = _Votes(first, ours, theirs)
    pictures = [
        picture
        for keeper in ("candidate", "reference")
        for picture in islice(votes.pictures(keeper), each_way)
    ]
    return Gallery(candidate.label, reference.label, tuple(votes.counts()), tuple(pictures))


@dataclass(frozen=True)
class _Said:
    """What the runs of an arm say of every image of the test split and the shifts."""

    split: NDArray[np.str_]
    item: NDArray[np.str_]
    unit: NDArray[np.str_]
    label: NDArray[np.int64]
    predictions: NDArray[np.int64]
    """[runs, N]."""

    def same_items(self, other: _Said) -> bool:
        """Whether both speak of the same images."""
        pairs = ((self.split, other.split), (self.item, other.item), (self.label, other.label))
        return all(np.array_equal(one, two) for one, two in pairs)

    @property
    def share(self) -> NDArray[np.float64]:
        """[N] of the runs that have the image right."""
        right: NDArray[np.float64] = np.mean(self.predictions == self.label, axis=0)
        return right

    def answer(self, index: int) -> Answer:
        """Of classes that equally many runs name the one that comes first."""
        said = self.predictions[:, index]
        classes, counts = np.unique(said[said != self.label[index]], return_counts=True)
        wrong = int(classes[counts.argmax()]) if len(classes) else None
        return Answer(len(said) - int(counts.sum()), len(said), wrong)


@dataclass(frozen=True)
class _Votes:
    zero_shot: _Said
    candidate: _Said
    reference: _Said

    def counts(self) -> Iterator[Counts]:
        right = self.zero_shot.share > 0.5
        ours, theirs = self.candidate.share > 0.5, self.reference.share > 0.5
        for split in np.unique(self.zero_shot.split):
            here = right & (self.zero_shot.split == split)
            yield Counts(
                split=str(split),
                right=int(here.sum()),
                both=int((here & ours & theirs).sum()),
                candidate=int((here & ours & ~theirs).sum()),
                reference=int((here & ~ours & theirs).sum()),
                neither=int((here & ~ours & ~theirs).sum()),
            )

    def pictures(self, keeper: Keeper) -> Iterator[Picture]:
        """All there are, in turn from every shift."""
        kept, lost = self.candidate.share, self.reference.share
        if keeper == "reference":
            kept, lost = lost, kept
        cell = (self.zero_shot.share > 0.5) & (kept > 0.5) & (lost <= 0.5)
        shifts: dict[str, list[int]] = {}
        for index in np.flatnonzero(cell):
            shifts.setdefault(str(self.zero_shot.split[index]), []).append(int(index))
        shifts.pop("id/test", None)

        def clearest(index: int) -> tuple[float, bytes]:
            item = str(self.zero_shot.item[index])
            return float(lost[index] - kept[index]), hashlib.sha256(item.encode()).digest()

        in_order = [self._one_a_unit(sorted(shifts[name], key=clearest)) for name in sorted(shifts)]
        for turn in zip_longest(*in_order):
            yield from (self._picture(index, keeper) for index in turn if index is not None)

    def _one_a_unit(self, indices: Sequence[int]) -> list[int]:
        first: dict[str, int] = {}
        for index in indices:
            first.setdefault(str(self.zero_shot.unit[index]), index)
        return list(first.values())

    def _picture(self, index: int, keeper: Keeper) -> Picture:
        return Picture(
            split=str(self.zero_shot.split[index]),
            item=str(self.zero_shot.item[index]),
            label=int(self.zero_shot.label[index]),
            kept_by=keeper,
            zero_shot=self.zero_shot.answer(index),
            reference=self.reference.answer(index),
            candidate=self.candidate.answer(index),
        )


def _read(runs: Sequence[RunRecord], merge: str | None) -> _Said | None:
    """None where a run keeps no predictions, or they are of other images than the first's."""
    paths = [predictions_path(run.folder, merge) for run in runs if run.folder is not None]
    if not paths or len(paths) < len(runs) or not all(path.is_file() for path in paths):
        return None
    each = [_said(path, runs[0].outside_means) for path in paths]
    first = each[0]
    if not all(first.same_items(other) for other in each):
        return None
    return replace(first, predictions=np.concatenate([one.predictions for one in each]))


def _said(path: Path, outside: Collection[str]) -> _Said:
    """By one run, in an order that all files share; without what is `outside` of all means."""
    table = read_columns(path, COLUMNS)
    split, item, unit = (
        np.asarray(table[name].to_pylist(), dtype=np.str_) for name in ("split", "id", "unit")
    )
    label, prediction = (
        np.asarray(table[name].to_pylist(), dtype=np.int64) for name in ("label", "prediction")
    )
    shift = np.char.startswith(split, "ood/") & ~np.isin(split, sorted(outside))
    kept = np.flatnonzero(shift | (split == "id/test"))
    order = kept[np.lexsort((item[kept], split[kept]))]
    return _Said(split[order], item[order], unit[order], label[order], prediction[order][None])


BINS = 15
"""As many as the metric `ece` has; the i-th is (i / 15, (i + 1) / 15]."""
_COLUMNS = ("split", "label", "prediction", "confidence")


@dataclass(frozen=True)
class Tally:
    """The images of one split."""

    images: NDArray[np.int64]
    """[C] of each class."""
    hits: NDArray[np.int64]
    """[C] those of them that are classified correctly."""
    binned: NDArray[np.int64]
    """[15] images by confidence."""
    binned_hits: NDArray[np.int64]
    confidence: NDArray[np.float64]
    """[15] sums of the confidences."""

    @property
    def ece(self) -> float:
        """The metric `ece` of docs/metrics.md, from these bins."""
        return float(np.abs(self.binned_hits - self.confidence).sum() / self.binned.sum())


def read_tallies(path: Path) -> Mapping[str, Tally] | None:
    """By split (`id/test`, `ood/<shift>`, `id/val`); None where the file is missing or no such."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path, columns=list(_COLUMNS))
        label, prediction = (table[name].to_numpy().astype(np.int64) for name in _COLUMNS[1:3])
        confidence = table["confidence"].to_numpy().astype(np.float64)
        # A file written by hand may hold plain strings.
        splits = table["split"].combine_chunks().cast(arrow.string()).dictionary_encode()
    except (OSError, KeyError, arrow.ArrowException):
        return None
    which = splits.indices.to_numpy()
    return {
        str(name): _tally(label[here], prediction[here], confidence[here])
        for number, name in enumerate(splits.dictionary.to_pylist())
        if len(here := np.flatnonzero(which == number))
    }


def _tally(
    label: NDArray[np.int64],
    prediction: NDArray[np.int64],
    confidence: NDArray[np.float64],
) -> Tally:
    # Of one split: those of retention are of other tasks, with classes of their own.
    classes = int(max(label.max(), prediction.max())) + 1
    hit = label == prediction
    bins = np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")
    return Tally(
        images=np.bincount(label, minlength=classes),
        hits=np.bincount(label[hit], minlength=classes),
        binned=np.bincount(bins, minlength=BINS),
        binned_hits=np.bincount(bins[hit], minlength=BINS),
        confidence=np.bincount(bins, weights=confidence, minlength=BINS).astype(np.float64),
    )
