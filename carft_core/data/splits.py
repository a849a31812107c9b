"""Splits drawn from train: a validation set, a test, a fraction, some shots."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from carft_sweep.carft_core.data.base import Split
from carft_sweep.carft_core.data.listing import join_names
from carft_sweep.carft_core.errors import RequestError

TRAINING_SPLITS = ("train", "val")
"""The splits that decide the weights; all others are only measured."""
IN_DISTRIBUTION = (*TRAINING_SPLITS, "test")


def carve(
    train: Split, *, val_fraction: float, split_seed: int, class_names: Sequence[str] | None = None
) -> tuple[Split, Split]:
    """Return (train, val): val gets about `val_fraction` of each class's units, at least one. The
    choice depends on `split_seed` and the units' names alone. Units stay whole: views of one
    drawing never lie on both sides. Raises RequestError when a class has a single unit."""
    classes = _units_by_class(train, f"val/{split_seed}")
    single = [label for label, units in classes.items() if len(units) < 2]
    if single:
        names = [class_names[label] if class_names else str(label) for label in single]
        raise RequestError(
            f"data.val_fraction: there is no val split, and train has a single image of "
            f"{join_names(names)}: none would be left to train on; add images or a val split"
        )
    return _divided(train, classes, lambda count: min(_share(count, val_fraction), count - 1))


def carve_test(images: Split, fraction: float) -> tuple[Split, Split]:
    """Return (train, test): test gets `test_share` of each class's units. The choice depends on the
    units' names alone, so that no seed makes another test."""
    classes = _units_by_class(images, "test")
    return _divided(images, classes, lambda count: test_share(count, fraction))


def test_share(count: int, fraction: float) -> int:
    """Return how many of a class's `count` units become a test: at least one, and of three or more
    two are left, one for train and one for a val that is carved from train."""
    return min(_share(count, fraction), max(1, count - 2))


def _divided(
    whole: Split, classes: Mapping[int, Sequence[str]], share: Callable[[int], int]
) -> tuple[Split, Split]:
    """Split off a part of each class: its first `share(count)` units. Return (rest, part)."""
    part = {unit for units in classes.values() for unit in units[: share(len(units))]}
    inside = np.array([unit in part for unit in whole.units], dtype=bool)
    return whole.subset(np.flatnonzero(~inside)), whole.subset(np.flatnonzero(inside))


def take_fraction(train: Split, fraction: float, split_seed: int) -> Split:
    """Return about `fraction` of each class's units, at least one; all of the split for 1. The
    choice depends on `split_seed` and the units' names alone, and a smaller fraction is a part of a
    greater one."""
    if fraction == 1:
        return train
    classes = _units_by_class(train, f"train/{split_seed}")
    return _divided(train, classes, lambda count: _share(count, fraction))[1]


def take_shots(train: Split, shots: int, split_seed: int) -> tuple[Split, tuple[int, ...]]:
    """Return `shots` units of each class, and the numbers of the classes with fewer units, of which
    all are taken. The choice depends on `split_seed` and the units' names alone; fewer shots are a
    part of more shots, and of a fraction that takes as many units."""
    classes = _units_by_class(train, f"train/{split_seed}")
    short = tuple(label for label, units in classes.items() if len(units) < shots)
    return _divided(train, classes, lambda _: shots)[1], short


def _share(count: int, fraction: float) -> int:
    """Return the number of units nearest to `fraction` of `count`, halves upwards, at least one."""
    return max(1, math.floor(count * fraction + 0.5))


def _units_by_class(split: Split, salt: str) -> dict[int, list[str]]:
    """Return each class's units in an order drawn by hashing their names with `salt`. A hash, not a
    permutation: adding an image leaves the places of the others alone."""
    label_of: dict[str, int] = {}
    for unit, label in zip(split.units, split.labels.tolist(), strict=True):
        if label_of.setdefault(unit, label) != label:
            raise RequestError(
                f"unit {unit!r} holds images of several classes, so it cannot be divided by class"
            )
    classes: dict[int, list[str]] = {label: [] for label in sorted(set(label_of.values()))}
    for unit in sorted(
        label_of, key=lambda name: hashlib.sha256(f"{salt}\0{name}".encode()).digest()
    ):
        classes[label_of[unit]].append(unit)
    return classes
