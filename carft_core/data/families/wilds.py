"""WILDS: iWildCam by camera, FMoW by year and region."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import csv

from carft_sweep.carft_core.data.base import (
    DataConfig,
    DataFolder,
    Family,
    FamilyData,
    Files,
    Split,
    cache_open,
    refuse_held_out,
)
from carft_sweep.carft_core.data.class_names import class_list
from carft_sweep.carft_core.data.folders import count_notes, data_root, find_folders, readable
from carft_sweep.carft_core.data.images import read_plain
from carft_sweep.carft_core.data.listing import join_names, read_manifest
from carft_sweep.carft_core.errors import RequestError, unknown


class Image(NamedTuple):
    """An image of a benchmark, as a row of its table says."""

    file: str
    """The file's name in the folder of images."""
    split: str
    """WILDS' name: `train`, `val`, `test`, `id_val`, `id_test`."""
    label: int
    unit: str
    """A name that images of the same thing share, such as those of one camera's burst."""
    group: str = ""
    """The group, such as a region, by which accuracy is measured too; empty: none."""


def read_columns(
    file: Path, needed: Mapping[str, pa.DataType], spare: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """Return the `needed` columns of a CSV file with a header, and those of `spare` that the file
    has. Raises RequestError for a file that is missing, lacks columns, or has values of another
    type."""
    if file.exists() and not file.is_file():
        raise RequestError(f"{file} cannot be read: it is not a regular file")
    try:
        with csv.open_csv(file) as reader:
            names = reader.schema.names
        lacking = [name for name in needed if name not in names]
        if lacking:
            raise RequestError(
                f"{file} lacks columns: {', '.join(lacking)}; it has {', '.join(names)}"
            )
        types = {**needed, **{name: of for name, of in (spare or {}).items() if name in names}}
        options = csv.ConvertOptions(column_types=types, include_columns=list(types))
        table = csv.read_csv(file, convert_options=options)
    except FileNotFoundError:
        raise RequestError(f"{file} is missing; it is in WILDS' archive") from None
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error}") from None
    except pa.ArrowInvalid as error:
        raise RequestError(f"{file} is not the table that WILDS publishes: {error}") from None
    for name in needed:
        if table[name].null_count:
            row = table[name].is_null().index(True).as_py()
            raise RequestError(f"{file}: row {row} has no {name}")
    return table


def check_values(file: Path, table: pa.Table, column: str, known: Collection[str]) -> None:
    """Raise RequestError for a value of a column that is not among `known`."""
    for value in table[column].unique().to_pylist():
        if value not in known:
            row = table[column].index(value).as_py()
            raise RequestError(f"{file}: row {row}: {unknown(column, value, known)}")


ORIGIN = "https://wilds.stanford.edu/downloads"
OURS: Mapping[str, str] = {
    "train": "train",
    "id_val": "val",
    "id_test": "test",
    "test": "shifts/test",
    "val": "extras/val",
}
"""WILDS' splits as `FamilyData` has them: what WILDS calls val and test is out of distribution."""
RECIPE: Mapping[str, object] = {
    "data.augmentation": "flyp",
    "optim.epochs": 20,
    "optim.batch_size": 256,
    "optim.weight_decay": 0.2,
    "optim.warmup": 500.0,
}
"""FLYP's recipe for WILDS."""


@dataclass(frozen=True, eq=False)
class Benchmark:
    """One data set of WILDS as published."""

    family: str
    folder: str
    """The folder below the data root, named as by WILDS' own package."""
    layout: str
    images: str
    """The folder below `folder` in which all images lie."""
    counts: Mapping[str, int]
    """How many images each of WILDS' splits has."""
    read: Callable[[Path, Sequence[str]], Sequence[Image]]
    """Returns the images that the tables in a folder name, given the names of the classes. Raises
    RequestError for a table that is not as published."""
    uneven: str = ""
    """As in `FamilyData`."""

    @property
    def whole(self) -> DataFolder:
        """The benchmark's folder with the images of all splits."""
        return DataFolder((self.folder,), self.layout, ORIGIN, sum(self.counts.values()))

    def folders(self) -> dict[str, DataFolder]:
        """Return the benchmark's folder for each split, with the split's number of images."""
        return {OURS[name]: replace(self.whole, images=n) for name, n in self.counts.items()}

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the labels."""
        return class_list(f"wilds/{self.family}")

    def open(self, config: DataConfig) -> FamilyData:
        """Return the data in the benchmark's folder below `data.root`. Raises RequestError when the
        folder is missing, a table is not as published, images in a table are missing or empty, or
        `data.test_domain` is set.
        Images are not decoded here: a broken one raises when it is read."""
        refuse_held_out(config, "leave the field out: its splits are official")
        folders = {"train": self.whole}
        folder = find_folders(data_root(config, folders), folders)["train"]
        with readable():
            return _open_data(folder, self)


@cache_open(4)
def _open_data(folder: Path, benchmark: Benchmark) -> FamilyData:
    names = benchmark.class_names()
    images = benchmark.read(folder, names)
    sizes = _sizes(folder, benchmark, images)
    counts = Counter(image.split for image in images)
    splits = {
        split: _split(
            folder / benchmark.images, split, [image for image in images if image.split == of]
        )
        for of, split in OURS.items()
    }
    empty = [of for of, split in OURS.items() if not len(splits[split])]
    if empty:
        raise RequestError(f"{folder}: its table names no image of {', '.join(empty)}")
    return FamilyData(
        class_names=names,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        shifts={"test": splits["shifts/test"]},
        extras={"val": splits["extras/val"]},
        digest=_digest(names, images, sizes),
        uneven=benchmark.uneven,
        notes=count_notes(
            benchmark.family,
            {name: (counts[name], published) for name, published in benchmark.counts.items()},
        ),
    )


def _sizes(folder: Path, benchmark: Benchmark, images: Sequence[Image]) -> list[int]:
    """Return the size in bytes of each image's file. Raises RequestError for missing files."""
    place = folder / benchmark.images
    if not place.is_dir():
        raise RequestError(f"{folder} lacks the folder {benchmark.images}/ with its images")
    manifest = read_manifest(folder, [benchmark.images])
    size_of = dict(zip(manifest.paths, manifest.sizes, strict=True))
    sizes = [size_of.get(f"{benchmark.images}/{image.file}") for image in images]
    missing = [image.file for image, size in zip(images, sizes, strict=True) if size is None]
    if missing:
        raise RequestError(
            f"{place} lacks {len(missing):,} of the {len(images):,} images that the table names: "
            f"{join_names(missing)}"
        )
    empty = [image.file for image, size in zip(images, sizes, strict=True) if size == 0]
    if empty:
        raise RequestError(
            f"{place} has files that are empty or links to nothing: {join_names(empty)}"
        )
    twice = [file for file, count in Counter(image.file for image in images).items() if count > 1]
    if twice:
        raise RequestError(f"{folder}: its table names images twice: {join_names(twice)}")
    return [size for size in sizes if size is not None]


def _split(place: Path, name: str, images: Sequence[Image]) -> Split:
    return Split(
        ids=tuple(f"{name}/{image.file}" for image in images),
        # With its class, since a training set is divided class by class.
        units=tuple(f"{image.unit}/{image.label}" for image in images),
        labels=torch.tensor([image.label for image in images], dtype=torch.int64),
        source=Files(place, pa.array([image.file for image in images], pa.string()), read_plain),
        groups=tuple(i.group for i in images) if any(i.group for i in images) else None,
    )


def _digest(names: Sequence[str], images: Sequence[Image], sizes: Sequence[int]) -> str:
    """Return a digest of the class names, and of every image's row and size in bytes."""
    digest = hashlib.sha256(b"wilds/1\n")
    digest.update("\0".join(names).encode())
    for image, size in zip(images, sizes, strict=True):
        row = (image.file, image.split, str(image.label), image.unit, image.group, str(size))
        digest.update("\0".join(row).encode() + b"\n")
    return digest.hexdigest()


IWILDCAM_COLUMNS = {
    "split": pa.string(),
    "filename": pa.string(),
    "y": pa.int64(),
    "sequence_remapped": pa.int64(),
}


def read_iwildcam(folder: Path, names: Sequence[str]) -> list[Image]:
    """Read the images of iWildCam's `metadata.csv`, one a row; a camera's burst is a unit. Raises
    RequestError for a table that is missing or has other columns, splits or classes."""
    file = folder / "metadata.csv"
    table = read_columns(file, IWILDCAM_COLUMNS)
    check_values(file, table, "split", OURS)
    for row, y in enumerate(table["y"].to_pylist()):
        if not 0 <= y < len(names):
            raise RequestError(f"{file}: row {row} has y {y}, expected 0 to {len(names) - 1}")
    return [
        Image(name, split, y, f"sequence {sequence}")
        for split, name, y, sequence in zip(
            *(table[c].to_pylist() for c in IWILDCAM_COLUMNS), strict=True
        )
    ]


IWILDCAM_BENCHMARK = Benchmark(
    family="iwildcam",
    folder="iwildcam_v2.0",
    layout="metadata.csv and train/<image>",
    images="train",
    counts={"train": 129_809, "id_val": 7_314, "id_test": 8_154, "val": 14_961, "test": 42_791},
    read=read_iwildcam,
    uneven="not every animal came by a camera on the days of the validation and test images",
)


IWILDCAM = Family(
    name="iwildcam",
    summary="WILDS' iWildCam 2.0: animals before camera traps, shifted to other cameras; macro-F1",
    open=IWILDCAM_BENCHMARK.open,
    # The templates are wise-ft's and FLYP's.
    defaults={**RECIPE, "prompts.classes": "iwildcam", "prompts.contexts": "openai"},
    folders=IWILDCAM_BENCHMARK.folders(),
    shared_names=("lowland paca", "jaguarundi", "unknown bird", "central american red brocket"),
    metrics=("macro_f1", "mean_per_class_top1"),
    validated_by="macro_f1",
    ranked_by="macro_f1",
)


TIME = pa.timestamp("us", tz="UTC")
FMOW_COLUMNS = {
    "split": pa.string(),
    "category": pa.string(),
    "country_code": pa.string(),
    "timestamp": TIME,
}
PLACE = "img_path"
"""The column with the path of the original file, in a folder for each place."""
ORIGINAL = ("train", "val", "test", "seq")
"""The splits of the original data set; WILDS leaves out `seq`, the sequestered images."""
OOD_VAL, OOD_TEST = 2013, 2016
"""The years with which the shifts begin. Source: `time_after_2016` of WILDS' `FMoWDataset`."""
OTHER = "Other"
"""WILDS' region of countries that have none, which is left out of the worst region."""


def split_of(original: str, year: int) -> str | None:
    """Return WILDS' split of an image; None where the image is in none. Out of distribution are
    test images from 2016 on and val images of 2013 to 2015; other images of these years are in no
    split."""
    if year < OOD_VAL:
        return {"train": "train", "val": "id_val", "test": "id_test"}.get(original)
    late = "test" if year >= OOD_TEST else "val"
    return late if original == late else None


def read_fmow(folder: Path, names: Sequence[str]) -> list[Image]:
    """Read the images of FMoW's `rgb_metadata.csv` that are in a split of WILDS, with their
    regions.

    The number in a file's name is the number of its row, including rows of no split. The images of
    one place are a unit. Raises RequestError for a table that is missing or has other columns,
    splits or classes.
    """
    file = folder / "rgb_metadata.csv"
    table = read_columns(file, FMOW_COLUMNS, {PLACE: pa.string()})
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
    """Return the region of each country, by its code in three letters; empty where it has none.
    Raises RequestError for a table that is missing or has other columns."""
    columns = {"alpha-3": pa.string(), "region": pa.string()}
    table = read_columns(folder / "country_code_mapping.csv", columns)
    pairs = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return {country: "" if region == OTHER else region for country, region in pairs}


FMOW_BENCHMARK = Benchmark(
    family="fmow",
    folder="fmow_v1.1",
    layout="rgb_metadata.csv, country_code_mapping.csv and images/rgb_img_<row>.png",
    images="images",
    counts={"train": 76_863, "id_val": 11_483, "id_test": 11_327, "val": 19_915, "test": 22_108},
    read=read_fmow,
)


FMOW = Family(
    name="fmow",
    summary="WILDS' FMoW 1.1: land use from above, shifted to later years; worst-region accuracy",
    open=FMOW_BENCHMARK.open,
    # The templates are wise-ft's and FLYP's.
    defaults={**RECIPE, "prompts.classes": "fmow", "prompts.contexts": "fmow"},
    folders=FMOW_BENCHMARK.folders(),
    metrics=("worst_group_top1",),
    ranked_by="worst_group_top1",
)
