"""Draw the picture of the docs: classes of IconShift by domain, as the views that a model sees."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from carft_sweep.carft_core.data.base import FamilyData
from carft_sweep.carft_core.data.families.icon_shift import read_subset
from carft_sweep.carft_core.data.transforms import Transform

LEFT, TOP, CELL, GAP = 112, 24, 80, 8
"""Pixels beside and above the images, of an image, and between two."""
PLAIN = Transform(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def classes_everywhere(data: FamilyData, count: int) -> list[int]:
    """Return `count` of the classes that occur in every domain, evenly spaced over the alphabet."""
    splits = [data.train, data.id_test, *data.shifts.values()]
    common = set.intersection(*({int(label) for label in split.labels} for split in splits))
    ordered = sorted(common)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def draw(data: FamilyData, path: Path, count: int) -> None:
    """Write a PNG with one row a class and one column a domain."""
    domains = {"train (solid)": data.train, "test (solid)": data.id_test, **data.shifts}
    rows = classes_everywhere(data, count)
    size = (LEFT + len(domains) * (CELL + GAP), TOP + len(rows) * (CELL + GAP))
    picture = Image.new("RGB", size, "white")
    words, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for column, (name, split) in enumerate(domains.items()):
        x = LEFT + column * (CELL + GAP)
        words.text((x + CELL / 2, TOP / 2), name, "black", font, anchor="mm")
        for row, label in enumerate(rows):
            y = TOP + row * (CELL + GAP)
            item = int(torch.nonzero(split.labels == label)[0])
            view = split.views([item], transform=PLAIN, seed=None, epoch=0)[0]
            image = Image.fromarray(view.permute(1, 2, 0).numpy()).resize(
                (CELL, CELL), Image.Resampling.NEAREST
            )
            picture.paste(image, (x, y))
            if column == 0:
                place = (LEFT - GAP, y + CELL / 2)
                words.text(place, data.class_names[label], "black", font, anchor="rm")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=10)
    args = parser.parse_args()
    draw(read_subset("report"), args.out, args.classes)


if __name__ == "__main__":
    main()
