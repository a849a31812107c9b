"""Draw the picture of the docs: classes of IconShift by domain, as the views that a model sees."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

from carft_core.data.base import FamilyData
from carft_core.data.icon_shift import read_subset
from carft_core.data.transforms import Transform

PLAIN = Transform(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def classes_everywhere(data: FamilyData, count: int) -> list[int]:
    """The first `count` of the classes that occur in every domain, evenly over the alphabet."""
    splits = [data.train, data.id_test, *data.shifts.values()]
    common = set.intersection(*({int(label) for label in split.labels} for split in splits))
    ordered = sorted(common)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def draw(data: FamilyData, path: Path, count: int) -> None:
    """Write a PNG with one row a class and one column a domain."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    domains = {"train (solid)": data.train, "test (solid)": data.id_test, **data.shifts}
    rows = classes_everywhere(data, count)
    figure, axes = plt.subplots(
        len(rows), len(domains), figsize=(1.1 * len(domains) + 1, 1.1 * len(rows)), squeeze=False
    )
    for row, label in enumerate(rows):
        for column, (name, split) in enumerate(domains.items()):
            item = int(torch.nonzero(split.labels == label)[0])
            view = split.views([item], transform=PLAIN, seed=None, epoch=0)[0]
            axis = axes[row, column]
            axis.imshow(view.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                axis.set_title(name, fontsize=9)
            if column == 0:
                axis.set_ylabel(
                    data.class_names[label], rotation=0, ha="right", va="center", fontsize=9
                )
    figure.tight_layout(pad=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=10)
    given = parser.parse_args()
    draw(read_subset("report"), given.out, given.classes)


if __name__ == "__main__":
    main()
