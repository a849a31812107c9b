"""Cheap checks that the data which a family opens keep the contract of families."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from carft_sweep.carft_core.config.user_code import blame_user_code, is_own
from carft_sweep.carft_core.data.base import Arrays, DataConfig, FamilyData, Source, Split
from carft_sweep.carft_core.data.listing import join_names
from carft_sweep.carft_core.data.splits import IN_DISTRIBUTION
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.errors import RequestError

TRANSFORM = Transform(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
"""The transform of the views that these checks, and a family's laws, look at."""


def open_checked(config: DataConfig, open_: Callable[[DataConfig], FamilyData]) -> FamilyData:
    """Open a family's data with `open_`, and check the data of a user's own family cheaply (this
    package's families have tests). Raises RequestError with each breach, or with what the user's
    code raised and where."""
    with blame_user_code(f"data.family: {config.family}", open_):
        data = open_(config)
        problems = list(_breaches(data)) if is_own(open_) else []
    if problems:
        raise RequestError("\n".join(f"{config.family}, {problem}" for problem in problems))
    return data


def _breaches(data: FamilyData) -> Iterator[str]:
    """Yield each defect of a family's splits with which a run would fail or be scored wrongly."""
    for name, split in data.splits.items():
        problem = (
            wrong_items(split, len(data.class_names))
            or _wrong_view(split)
            or missing_classes(data, name, split)
        )
        if problem is not None:
            yield f"{name}: {problem}"


def missing_classes(data: FamilyData, name: str, split: Split) -> str | None:
    """Return a message on the classes that the split `name` lacks though it must have them: all in
    train, and in val and test unless the family is `uneven`; None if complete."""
    if name != "train" and (name not in IN_DISTRIBUTION or data.uneven):
        return None
    missing = sorted({*range(len(data.class_names))} - {*split.labels.unique().tolist()})
    if not missing:
        return None
    numbers = join_names([str(label) for label in missing])
    names = join_names([data.class_names[label] for label in missing])
    may = "" if name == "train" else "; where that is meant, say why in `uneven`"
    return f"no image of the classes [{numbers}] ({names}){may}"


def wrong_items(split: Split, classes: int) -> str | None:
    """Return what is wrong with the ids, units and labels of a split of a family with this number
    of classes; None if right."""
    count, labels = len(split.ids), split.labels
    if not count == len(split.units) == len(labels) or not count:
        return (
            "as many ids as units and labels, and one at least; it has "
            f"{count} ids, {len(split.units)} units and {len(labels)} labels"
        )
    if labels.dtype != torch.int64 or labels.dim() != 1:
        shape = list(labels.shape)
        return f"labels must be int64, a tensor [{count}], got {labels.dtype} {shape}"
    possible = range(classes) if split.classes is None else split.classes
    if not set(possible) <= set(range(classes)):
        return f"`classes` must be indices of the {classes} classes, got {list(possible)}"
    wrong = ~torch.isin(labels, torch.tensor(possible, dtype=torch.int64))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        allowed = f"the {classes} classes, 0 to {classes - 1}"
        if split.classes is not None:
            allowed = f"its `classes`, {join_names([str(label) for label in possible])}"
        return (
            f"labels must be indices of {allowed}; that of {split.ids[row]} is {int(labels[row])}"
        )
    return None


def _wrong_view(split: Split) -> str | None:
    """Return what is wrong with the first and last view, or None. Files are not decoded."""
    source, kind = split.source, type(split.source)
    if isinstance(source, Arrays):
        pixels = source.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            return f"pixels must be uint8 [N, H, W, 3], got {pixels.dtype} {list(pixels.shape)}"
    elif source.decodes or (kind.read is Source.read and kind.views is Source.views):
        return None
    with contextlib.suppress(RequestError):  # an image is broken, which its reader tells
        rows = [0, len(split) - 1]
        views = split.views(rows, transform=TRANSFORM, seed=None, epoch=0)
        size = TRANSFORM.size
        if views.dtype != torch.uint8 or views.shape != (2, 3, size, size):
            return (
                f"views must be uint8 [B, 3, {size}, {size}] for a transform of size {size}, got "
                f"{views.dtype} {list(views.shape)} for two rows"
            )
    return None
