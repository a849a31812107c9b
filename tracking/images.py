"""How sure an accuracy is over images: bootstrap intervals from the predictions that runs keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tracking.base import TrackingError
from tracking.curves import OOD
from tracking.records import RunRecord
from tracking.statistics import RESAMPLES, Interval, cluster_bootstrap, percentile_interval

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
