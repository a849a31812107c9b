"""Images that one arm classifies correctly and another does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.metrics import NOUNS
from carft_sweep.tracking.comparison.predictions import read_predictions
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
