"""How accurate a row is at each confidence, on the test split and on the shifts together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tracking.evidence.classes import ID_SPLIT, MEAN, Tallies
from tracking.evidence.tallies import BINS
from tracking.rows import Row
from tracking.statistics import mean


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
