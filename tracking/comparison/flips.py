"""Images that one arm classifies correctly and another does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.predictions import predictions_path, read_columns
from carft_sweep.tracking.comparison.runs import Arm
from carft_sweep.tracking.errors import TrackingError, unknown_name

if TYPE_CHECKING:
    import pandas as pd


def find_flips(
    comparison: Comparison, reference: str, candidate: str
) -> tuple[tuple[int | None, ...], pd.DataFrame]:
    """Count the images that the candidate has right and the reference wrong, and the reverse; both
    are named by the labels of their rows.

    An arm has an image right where more than half of its runs do.

    Returns:
        The common seeds, (None,) where no seed changes either arm; and a table with a row for the
        ID test and each shift: images, those won and lost, won minus lost as `net`, and the
        `difference` in accuracy (a fraction), mean over the seeds.

    Raises:
        TrackingError: No row has a label, or predictions were not kept or are of different images.
    """
    if comparison.tasks:
        raise TrackingError("--flips: the rows of several tasks are means, which have no images")
    arms = {row.arm.label: row.arm for row in comparison.rows if row.n}
    for label in (reference, candidate):
        if label not in arms:
            raise TrackingError(f"--flips: {unknown_name('setting', label, arms)}")
    seeds = comparison.pair(arms[candidate], arms[reference]).seeds
    if not seeds:
        raise TrackingError(f"--flips: {reference} and {candidate} have no finished seed in common")
    before, after = (_shares(arms[label], seeds) for label in (reference, candidate))
    if not before.index.equals(after.index):
        raise TrackingError(
            f"--flips: the predictions of {reference} and {candidate} are of different images"
        )
    is_right, was_right = after > 0.5, before > 0.5
    images = (is_right & ~was_right).to_frame("won")
    images = images.assign(lost=was_right & ~is_right, difference=after - before)
    splits = images.groupby(level="split").agg(
        images=("won", "size"),
        won=("won", "sum"),
        lost=("lost", "sum"),
        difference=("difference", "mean"),
    )
    return seeds, splits.assign(net=splits["won"] - splits["lost"]).reset_index()


def _shares(arm: Arm, seeds: Sequence[int | None]) -> pd.Series[float]:
    """Return for each image of the ID test and the shifts the share of an arm's runs that classify
    it right, by split, image and label. Raises TrackingError without readable predictions."""
    import pandas as pd

    runs = [run for run in arm.done if run.seed in seeds or not arm.has_seeds]
    paths = [predictions_path(run.folder, arm.merge) for run in runs if run.folder is not None]
    if len(paths) == len(runs) and all(path.is_file() for path in paths):
        columns = ("split", "id", "label", "prediction")
        every = pd.concat(
            [read_columns(path, columns).to_pandas().astype({"split": str}) for path in paths]
        )
        in_mean = every["split"].str.startswith("ood/")
        in_mean &= ~every["split"].isin(runs[0].outside_means)
        images = every[in_mean | (every["split"] == "id/test")]
        is_right = images["label"] == images["prediction"]
        by_image = is_right.groupby([images[name] for name in columns[:3]], observed=True)
        if (by_image.size() == len(runs)).all():
            return by_image.mean()
    raise TrackingError(
        f"--flips: {arm.label} keeps no predictions here (trial.keep.predictions), or its seeds "
        "were tested on different images"
    )
