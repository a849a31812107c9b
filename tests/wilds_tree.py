"""iWildCam and FMoW in the folders that WILDS makes, with a few tiny pictures of each class."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

from tests.imagenet_tree import pictures

LISTS = Path(__file__).parents[1] / "carft_core" / "data" / "classes" / "wilds"
IWILDCAM, FMOW = "iwildcam_v2.0", "fmow_v1.1"
CATEGORIES = tuple((LISTS / "fmow.txt").read_text().split())
REGIONS = {"CHN": "Asia", "FRA": "Europe", "KEN": "Africa", "USA": "Americas", "AUS": "Oceania"}
REGIONS |= {"ATA": "", "XKX": "Other"}
"""By country, as in the table; the last two have none. A country that it lacks has none either."""
Row = Mapping[str, object]


def make(root: Path) -> Path:
    make_iwildcam(root / IWILDCAM)
    make_fmow(root / FMOW)
    return root


def make_iwildcam(folder: Path, rows: Sequence[Row] | None = None) -> Path:
    """The table and its pictures; by default those of `iwildcam_rows`."""
    chosen = iwildcam_rows() if rows is None else rows
    _write(folder / "metadata.csv", chosen)
    _fill(folder / "train", (str(row["filename"]) for row in chosen))
    return folder


def make_fmow(folder: Path, rows: Sequence[Row] | None = None) -> Path:
    """The tables and the pictures, of every row as there; by default those of `fmow_rows`."""
    chosen = fmow_rows() if rows is None else rows
    _write(folder / "rgb_metadata.csv", chosen)
    countries = [{"name": c, "alpha-3": c, "region": r} for c, r in REGIONS.items()]
    _write(folder / "country_code_mapping.csv", countries)
    _fill(folder / "images", (f"rgb_img_{row}.png" for row in range(len(chosen))))
    return folder


def iwildcam_rows() -> list[Row]:
    """Two bursts of each class to train on, one of them of two images; else every tenth class."""
    bursts = [("train", y, images) for y in range(182) for images in (2, 1)]
    held_out = ("id_val", "id_test", "val", "test")
    bursts += [(split, y, 1) for split in held_out for y in range(0, 182, 10)]
    return [
        iwildcam_row(split, y, sequence, image)
        for sequence, (split, y, images) in enumerate(bursts)
        for image in range(images)
    ]


def iwildcam_row(split: str, y: int, sequence: int, image: int = 0) -> Row:
    """With the columns that are read, and those that WILDS' package wants."""
    row = {"split": split, "location_remapped": sequence, "y": y, "sequence_remapped": sequence}
    return {**row, "datetime": "2013-06-05 05:44:19.000", "filename": f"{sequence}-{image}.jpg"}


def fmow_rows() -> list[Row]:
    """Of each class one or two images of every split, before them an image of no split."""
    rows, countries = [], cycle([*REGIONS, "ZZZ", ""])
    for category in CATEGORIES:
        for original, year in (
            *(("seq", 2010), ("train", 2002), ("train", 2012), ("val", 2012), ("test", 2011)),
            *(("val", 2013), ("test", 2016), ("train", 2016), ("test", 2014), ("val", 2017)),
        ):
            rows.append(fmow_row(original, category, f"{year}-01-01T00:00:00Z", next(countries)))
    return rows


def fmow_row(original: str, category: str, time: str, country: str, place: object = "") -> Row:
    """With the columns that are read; the image is of a place of its own if none is named."""
    where = f"{original}/{category}/{category}_{place or time + country}"
    row = {"split": original, "img_path": f"{where}/{category}_0_rgb.jpg", "category": category}
    return {**row, "country_code": country, "timestamp": time}


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _fill(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir()
    for name, picture in zip(names, cycle(pictures()), strict=False):
        (folder / name).write_bytes(picture)
