"""Made-up test images, each with its unit, and which of them a model has right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import pandas as pd

from carft_sweep.tracking.comparison.hits import Hits
from carft_sweep.tracking.comparison.metrics import OOD

Images: TypeAlias = pd.DataFrame
"""`split` and `unit` of each image, and whether a model has it `right`."""
Model = Sequence[tuple[str, str, bool]]


def images(rows: Model) -> Images:
    return pd.DataFrame(rows, columns=["split", "unit", "right"]).astype({"right": float})


def drawings(seed: int, drawings: int = 40, views: int = 4) -> Images:
    """Photographs of ID, each a unit, and drawings with up to so many views in two shifts."""
    rng = np.random.default_rng(seed)
    rows = [("id/test", f"photo-{n:03d}", bool(rng.random() < 0.6)) for n in range(2 * drawings)]
    for n in range(drawings):
        ease = rng.beta(0.5, 0.5)  # views of one drawing are alike
        for split in ("ood/a", "ood/b"):
            views_here = rng.integers(0, views, endpoint=True) if n else 1
            right = rng.random(views_here) < ease
            rows += [(split, f"drawing-{n:03d}", bool(is_right)) for is_right in right]
    return images(rows)


def answered(by: Images, seed: int, share: float = 0.3) -> Images:
    """The same images, of which another model answers such a share otherwise."""
    rng = np.random.default_rng(seed)
    flips = rng.random(len(by)) < share
    return by.assign(right=np.where(flips, 1 - by.right, by.right))


def hits_of(by: Images, **changes: Any) -> Hits:
    """Counts as they would be read."""
    units, row = np.unique(by.unit.to_numpy(np.str_), return_inverse=True)
    splits, column = np.unique(by.split.to_numpy(np.str_), return_inverse=True)
    right, images = np.zeros((2, len(units), len(splits)), np.int32)
    np.add.at(right, (row, column), by.right.to_numpy(np.int32))
    np.add.at(images, (row, column), 1)
    return Hits(units, tuple(map(str, splits)), right, images, **changes)


def top1(by: Images, metric: str) -> float:
    """A metric: the mean over its splits of the share that is right."""
    right, split = by.right.to_numpy(), by.split.to_numpy(np.str_)
    names = ["ood/a", "ood/b"] if metric == OOD else ["id/test"]
    return float(np.mean([right[split == name].mean() for name in names if name in split]))


def groups_of(by: Images, count: int) -> dict[str, int]:
    """The group of each unit: dealt in turn, by the splits that they occur in, then by checksum."""
    splits = {unit: {*rows.split} for unit, rows in by.groupby("unit")}
    every = sorted({*by.split})
    order = sorted(
        splits,
        key=lambda unit: (*(name in splits[unit] for name in every), crc32(str(unit).encode())),
    )
    return {str(unit): place % count for place, unit in enumerate(order)}
