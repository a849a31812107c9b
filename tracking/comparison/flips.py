"""Images that one arm classifies correctly and another does not: how many, and which to show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Literal

import numpy as np

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.metrics import NOUNS
from carft_sweep.tracking.comparison.predictions import Predictions, read_predictions
from carft_sweep.tracking.comparison.runs import Arm
from carft_sweep.tracking.errors import TrackingError, unknown_name


@dataclass(frozen=True)
class SplitFlips:
    """The images of one split that the candidate wins and loses against the reference.

    An arm has an image right where more than half of its runs do.
    """

    split: str
    images: int
    won: int
    lost: int
    difference: float
    """In accuracy, the mean over the seeds, as in the table of a comparison."""

    @property
    def net(self) -> int:
        """Images won minus images lost."""
        return self.won - self.lost


@dataclass(frozen=True)
class Flips:
    """Two arms on the images of the ID test and of each shift."""

    reference: str
    candidate: str
    seeds: tuple[int | None, ...]
    """Those that both have; None alone where no seed changes either."""
    splits: tuple[SplitFlips, ...]


def find_flips(comparison: Comparison, reference: str, candidate: str) -> Flips:
    """Count what the candidate wins and loses against the reference, both named by their labels.

    Raises TrackingError for a label that no row has, and where predictions were not kept or are of
    different images.
    """
    if comparison.tasks:
        raise TrackingError("--flips: the rows of several tasks are means, which have no images")
    arms = {row.arm.label: row.arm for row in comparison.rows if row.n}
    for label in (reference, candidate):
        if label not in arms:
            raise TrackingError(f"--flips: {unknown_name('setting', label, arms)}")
    seeds, endpoint = comparison.pair(arms[candidate], arms[reference]).seeds, comparison.endpoint
    if not seeds:
        for arm in (arms[reference], arms[candidate]):
            if not arm.values(endpoint.metric):
                noun = NOUNS[endpoint.by]
                raise TrackingError(
                    f"--flips: no {noun} was measured: {arm.label} has no {endpoint.metric}"
                )
        raise TrackingError(f"--flips: {reference} and {candidate} have no finished seed in common")
    sides = []
    for arm in (arms[reference], arms[candidate]):
        predictions = read_predictions(arm, seeds)
        if predictions is None:
            raise TrackingError(
                f"--flips: {arm.label} keeps no predictions here (trial.keep.predictions), or its "
                "seeds were tested on different images"
            )
        sides.append(predictions)
    before, after = sides
    if not before.same_items(after):
        raise TrackingError(
            f"--flips: the predictions of {reference} and {candidate} are of different images"
        )
    splits = []
    for split in np.unique(before.split):
        here = before.split == split
        won, lost = (after.right & ~before.right)[here], (before.right & ~after.right)[here]
        change = float((after.share - before.share)[here].mean())
        splits.append(SplitFlips(str(split), len(won), int(won.sum()), int(lost.sum()), change))
    return Flips(reference, candidate, seeds, tuple(splits))


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
    """The votes of an arm's runs on an image."""

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
    zero_shot: Arm,
    seeds: Sequence[int | None],
    *,
    each_way: int = EACH_WAY,
) -> Gallery | None:
    """Pick images that the zero-shot model had right, over the runs with these seeds.

    An arm keeps an image when more than half of its runs have it right, else it has lost it. Of
    the two cells in which the arms differ, up to `each_way` images each: in turn from every
    shift, the clearest first, one of each unit, and else in an order that only the names of the
    images decide. None where predictions were not kept, or are of other images. Raises
    TrackingError for files that are none.
    """
    start = read_predictions(zero_shot, [zero_shot.done[0].seed])
    ours, theirs = (read_predictions(arm, seeds) for arm in (candidate, reference))
    if start is None or ours is None or theirs is None:
        return None
    if not (start.same_items(ours) and start.same_items(theirs)):
        return None
    counts = []
    for split in np.unique(start.split):
        here = start.right & (start.split == split)
        both = [(here & (ours.right == a) & (theirs.right == b)).sum() for a, b in _CELLS]
        counts.append(Counts(str(split), int(here.sum()), *map(int, both)))
    pictures: list[Picture] = []
    sides: tuple[tuple[Keeper, Predictions, Predictions], ...] = (
        ("candidate", ours, theirs),
        ("reference", theirs, ours),
    )
    for keeper, kept, lost in sides:
        for index in islice(_clearest(start, kept, lost), each_way):
            names = str(start.split[index]), str(start.item[index]), int(start.label[index])
            answers = (_answer(it, index) for it in (start, theirs, ours))
            pictures.append(Picture(*names, keeper, *answers))
    return Gallery(candidate.label, reference.label, tuple(counts), tuple(pictures))


_CELLS = ((True, True), (True, False), (False, True), (False, False))
"""Whether the candidate and the reference have an image right, as `Counts` has it."""


def _answer(predictions: Predictions, index: int) -> Answer:
    """Count the votes on an image; of classes with equally many the first one counts."""
    votes = predictions.prediction[:, index]
    classes, counts = np.unique(votes[votes != predictions.label[index]], return_counts=True)
    wrong = int(classes[counts.argmax()]) if len(classes) else None
    return Answer(len(votes) - int(counts.sum()), len(votes), wrong)


def _clearest(start: Predictions, kept: Predictions, lost: Predictions) -> Iterator[int]:
    """Yield the images that one arm kept and the other lost, in turn from every shift, one of each
    unit."""

    def order(index: int) -> tuple[float, bytes]:
        item = str(start.item[index])
        return float(lost.share[index] - kept.share[index]), hashlib.sha256(item.encode()).digest()

    by_shift: dict[str, dict[str, int]] = {}
    for index in sorted(
        map(int, np.flatnonzero(start.right & kept.right & ~lost.right)), key=order
    ):
        if (split := str(start.split[index])) != "id/test":
            by_shift.setdefault(split, {}).setdefault(str(start.unit[index]), index)
    for turn in zip_longest(*(by_shift[name].values() for name in sorted(by_shift))):
        yield from (index for index in turn if index is not None)
