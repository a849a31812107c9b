"""Images that one arm classifies correctly and another does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from carft_sweep.tracking.comparison.compare import Comparison
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

    @property
    def p_mcnemar(self) -> float:
        """Exact two-sided p of McNemar's test, as if images were independent."""
        from scipy.stats import binomtest  # takes a second to import

        return (
            float(binomtest(self.won, self.won + self.lost).pvalue) if self.won + self.lost else 1.0
        )


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
    sides = (arms[reference], arms[candidate])
    with_seeds = [{run.seed for run in arm.done} for arm in sides if arm.has_seeds]
    seeds = (
        sorted(seed for seed in set.intersection(*with_seeds) if seed is not None)
        if with_seeds
        else []
    )
    if with_seeds and not seeds:
        raise TrackingError(f"--flips: {reference} and {candidate} have no finished seed in common")
    one, two = (_predictions(arm, seeds) for arm in sides)
    if not one.same_items(two):
        raise TrackingError(
            f"--flips: the predictions of {reference} and {candidate} are of different images"
        )
    return Flips(reference, candidate, tuple(seeds) or (None,), _count(one, two))


def _predictions(arm: Arm, seeds: Sequence[int]) -> Predictions:
    """Read what an arm's runs on these seeds predict for the ID test and the shifts."""
    runs = [run for run in arm.done if run.seed in seeds or not arm.has_seeds]
    predictions = read_predictions(runs, arm.merge)
    if predictions is None:
        raise TrackingError(
            f"--flips: {arm.label} keeps no predictions here (trial.keep.predictions), or its "
            "seeds were tested on different images"
        )
    return predictions.only(predictions.in_means | (predictions.split == "id/test"))


def _count(reference: Predictions, candidate: Predictions) -> tuple[SplitFlips, ...]:
    splits = []
    change = candidate.share - reference.share
    before, after = reference.share > 0.5, candidate.share > 0.5
    for split in np.unique(reference.split):
        here = reference.split == split
        won, lost = (int((here & mask).sum()) for mask in (after & ~before, before & ~after))
        splits.append(
            SplitFlips(str(split), int(here.sum()), won, lost, float(change[here].mean()))
        )
    return tuple(splits)
