"""FMoW of WILDS: land use from above, shifted to later years, and measured in every region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from carft_core.data.base import Family, FamilyData, FoundSplit
from carft_core.data.wilds import RECIPE, Benchmark, look_at_benchmark, open_benchmark
from carft_core.data.wilds_tables import Image, check_values, read_columns

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig

TIME = pa.timestamp("us", tz="UTC")
COLUMNS = {
    "split": pa.string(),
    "category": pa.string(),
    "country_code": pa.string(),
    "timestamp": TIME,
}
PLACE = "img_path"
"""Of the original file, in the folder of its place."""
ORIGINAL = ("train", "val", "test", "seq")
"""The splits of the original data set; WILDS leaves out `seq`, the sequestered images."""
OOD_VAL, OOD_TEST = 2013, 2016
"""The years with which the shifts begin. Source: `time_after_2016` of WILDS' `FMoWDataset`."""
OTHER = "Other"
"""What WILDS calls the region of countries that have none; it leaves it out of the worst."""


def split_of(original: str, year: int) -> str | None:
    """WILDS' split of an image; None where it is in none.

    Out of distribution are test images from 2016 on and val images of 2013 to 2015; what is left
    of these years is in no split.
    """
    if year < OOD_VAL:
        return {"train": "train", "val": "id_val", "test": "id_test"}.get(original)
    late = "test" if year >= OOD_TEST else "val"
    return late if original == late else None


def read_fmow(folder: Path, names: Sequence[str]) -> list[Image]:
    """The images of `rgb_metadata.csv` that are in a split of WILDS, with their regions.

    The number in a file's name is that of its row, rows of no split counted. The images of one
    place are a unit. Raises RequestError for a table that is missing or has other columns, splits
    or classes.
    """
    file = folder / "rgb_metadata.csv"
    table = read_columns(file, COLUMNS, {PLACE: pa.string()})
    check_values(file, table, "split", ORIGINAL)
    check_values(file, table, "category", names)
    regions, label = read_regions(folder), {name: index for index, name in enumerate(names)}
    year = pc.year(table["timestamp"]).to_pylist()
    splits = [split_of(*of) for of in zip(table["split"].to_pylist(), year, strict=True)]
    categories, countries = (table[name].to_pylist() for name in ("category", "country_code"))
    paths = table[PLACE].to_pylist() if PLACE in table.column_names else None
    return [
        Image(
            file=f"rgb_img_{row}.png",
            split=split,
            label=label[categories[row]],
            unit=f"image {row}" if paths is None else paths[row].rpartition("/")[0],
            group=regions.get(countries[row], ""),
        )
        for row, split in enumerate(splits)
        if split is not None
    ]


def read_regions(folder: Path) -> Mapping[str, str]:
    """The region of each country, by its code in three letters; empty where it has none.

    Raises RequestError for a table that is missing or has other columns.
    """
    wanted = {"alpha-3": pa.string(), "region": pa.string()}
    table = read_columns(folder / "country_code_mapping.csv", wanted)
    pairs = zip(*(table[name].to_pylist() for name in wanted), strict=True)
    return {country: "" if region == OTHER else region for country, region in pairs}


BENCHMARK = Benchmark(
    family="fmow",
    folder="fmow_v1.1",
    layout="rgb_metadata.csv, country_code_mapping.csv and images/rgb_img_<row>.png",
    images="images",
    counts={"train": 76_863, "id_val": 11_483, "id_test": 11_327, "val": 19_915, "test": 22_108},
    read=read_fmow,
)


def open_fmow(config: DataConfig) -> FamilyData:
    """Open FMoW below `data.root`. Raises RequestError as `open_benchmark` does."""
    return open_benchmark(config, BENCHMARK)


def look_fmow(config: DataConfig) -> dict[str, FoundSplit]:
    """What is there of FMoW. Raises RequestError as `look_at_benchmark` does."""
    return look_at_benchmark(config, BENCHMARK)


FMOW = Family(
    name="fmow",
    summary="WILDS' FMoW 1.1: land use from above, shifted to later years; worst-region accuracy",
    open=open_fmow,
    # The templates are wise-ft's and FLYP's.
    defaults={
        **RECIPE,
        "prompts.classes": "fmow",
        "prompts.contexts": "fmow",
    },
    folders=BENCHMARK.folders(),
    look=look_fmow,
    metrics=("worst_group_top1",),
    ranked_by="worst_group_top1",
)
