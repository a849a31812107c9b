"""Images that one model kept and the other lost, of those that zero-shot had right."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tracking.images import COLUMNS, predictions_path, read_columns
from tracking.records import Arm, RunRecord

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
