"""What a run's predictions come to: hits by class and by confidence, for every split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
