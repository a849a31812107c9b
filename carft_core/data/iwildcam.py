"""iWildCam of WILDS: animals before camera traps, shifted to cameras that trained nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from carft_core.data.base import Family, FamilyData, FoundSplit
from carft_core.data.wilds import OURS, RECIPE, Benchmark, look_at_benchmark, open_benchmark
from carft_core.data.wilds_tables import Image, check_values, read_columns
from carft_core.errors import RequestError

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig

COLUMNS = {
    "split": pa.string(),
    "filename": pa.string(),
    "y": pa.int64(),
    "sequence_remapped": pa.int64(),
}


def read_iwildcam(folder: Path, names: Sequence[str]) -> list[Image]:
    """Every row of `metadata.csv`; a burst of one camera is a unit.

    Raises RequestError for a table that is missing or has other columns, splits or classes.
    """
    file = folder / "metadata.csv"
    table = read_columns(file, COLUMNS)
    check_values(file, table, "split", OURS)
    for row, y in enumerate(table["y"].to_pylist()):
        if not 0 <= y < len(names):
            raise RequestError(f"{file}: row {row} has y {y}, expected 0 to {len(names) - 1}")
    return [
        Image(name, split, y, f"sequence {sequence}")
        for split, name, y, sequence in zip(*(table[c].to_pylist() for c in COLUMNS), strict=True)
    ]


BENCHMARK = Benchmark(
    family="iwildcam",
    folder="iwildcam_v2.0",
    layout="metadata.csv and train/<image>",
    images="train",
    counts={"train": 129_809, "id_val": 7_314, "id_test": 8_154, "val": 14_961, "test": 42_791},
    read=read_iwildcam,
    uneven="not every animal came by a camera on the days of the validation and test images",
)


def open_iwildcam(config: DataConfig) -> FamilyData:
    """Open iWildCam below `data.root`. Raises RequestError as `open_benchmark` does."""
    return open_benchmark(config, BENCHMARK)


def look_iwildcam(config: DataConfig) -> dict[str, FoundSplit]:
    """What is there of iWildCam. Raises RequestError as `look_at_benchmark` does."""
    return look_at_benchmark(config, BENCHMARK)


IWILDCAM = Family(
    name="iwildcam",
    summary="WILDS' iWildCam 2.0: animals before camera traps, shifted to other cameras; macro-F1",
    open=open_iwildcam,
    # The templates are wise-ft's and FLYP's.
    defaults={
        **RECIPE,
        "prompts.classes": "iwildcam",
        "prompts.contexts": "openai",
    },
    folders=BENCHMARK.folders(),
    look=look_iwildcam,
    shared_names=("lowland paca", "jaguarundi", "unknown bird", "central american red brocket"),
    metrics=("macro_f1", "mean_per_class_top1"),
    validated_by="macro_f1",
    ranked_by="macro_f1",
)
