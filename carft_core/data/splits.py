"""Parts of a split: what can be read of it, a validation set carved from train, a fraction."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from carft_core.data import FAMILIES
from carft_core.data.bad_files import Seen, bad_files, note
from carft_core.data.base import FamilyData, Split
from carft_core.data.shift_names import named_shifts
from carft_core.data.subset import Subset
from carft_core.errors import RequestError, unknown

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig

NAMED_AT_MOST = 5
TRAINING_SPLITS = ("train", "val")
"""Those that decide the weights; the others are only measured."""
IN_DISTRIBUTION = (*TRAINING_SPLITS, "test")

_LOG = logging.getLogger(__name__)


def carve(
    train: Split,
    *,
    val_fraction: float,
    split_seed: int,
    class_names: Sequence[str] | None = None,
) -> tuple[Split, Split]:
    """(train, val): val gets about `val_fraction` of each class's units, at least one of them.

    Which ones depends on `split_seed` and the units' names alone. Units stay whole: views of one
    drawing never lie on both sides. Raises RequestError when a class has a single unit.
    """
    classes = _units_by_class(train, f"val/{split_seed}")
    single = [label for label, units in classes.items() if len(units) < 2]
    if single:
        names = [class_names[label] if class_names else str(label) for label in single]
        raise RequestError(
            f"data.val_fraction: there is no val split, and train has a single image of "
            f"{_listed(names)}: none would be left to train on; add images or a val split"
        )
    val = {
        unit
        for units in classes.values()
        for unit in units[: min(_share(len(units), val_fraction), len(units) - 1)]
    }
    return _divided(train, val)


def carve_test(images: Split, fraction: float) -> tuple[Split, Split]:
    """(train, test): test gets `test_share` of each class's units.

    Which ones depends on the units' names alone, so that no seed makes another test.
    """
    classes = _units_by_class(images, "test")
    return _divided(
        images,
        {unit for units in classes.values() for unit in units[: test_share(len(units), fraction)]},
    )


def test_share(count: int, fraction: float) -> int:
    """How many of a class's `count` units become a test: at least one, and two of three are left.

    One for train, one for a val that is carved from it.
    """
    return min(_share(count, fraction), max(1, count - 2))


def _divided(whole: Split, part: Collection[str]) -> tuple[Split, Split]:
    """(the rest, the part), by units."""
    inside = [unit in part for unit in whole.units]
    return (
        Subset(whole, [index for index, is_part in enumerate(inside) if not is_part]),
        Subset(whole, [index for index, is_part in enumerate(inside) if is_part]),
    )


def take_fraction(train: Split, fraction: float, split_seed: int) -> Split:
    """About `fraction` of each class's units, at least one; all of the split for 1.

    Which ones depends on `split_seed` and the units' names alone, and a smaller fraction is a
    part of a greater one.
    """
    if fraction == 1:
        return train
    classes = _units_by_class(train, f"train/{split_seed}")
    kept = {unit for units in classes.values() for unit in units[: _share(len(units), fraction)]}
    return _divided(train, kept)[1]


def take_shots(train: Split, shots: int, split_seed: int) -> tuple[Split, tuple[int, ...]]:
    """`shots` units of each class, and the classes that have fewer, of which all are taken.

    Which ones depends on `split_seed` and the units' names alone, and fewer shots are a part of
    more; so are they of a fraction that takes as many.
    """
    classes = _units_by_class(train, f"train/{split_seed}")
    kept = {unit for units in classes.values() for unit in units[:shots]}
    short = tuple(label for label, units in classes.items() if len(units) < shots)
    return _divided(train, kept)[1], short


def bad_files_of(data: FamilyData, name: str, seen: Seen | None = None) -> dict[str, str]:
    """Those of one split, named as in `FamilyData.splits`, as `bad_files` finds and keeps them."""
    known = data.digest_of_training if name in TRAINING_SPLITS else data.digest
    return bad_files(data.splits[name], data.digests.get(name, known), seen)


def without_bad_files(data: FamilyData) -> FamilyData:
    """The same without images that cannot be read, each of which is named in the log.

    Raises RequestError as `without` does.
    """
    found = {name: bad_files_of(data, name) for name in data.splits}
    for name, bad in found.items():
        for item, why in bad.items():
            _LOG.warning("left out of %s: %s: %s", name, item, why)
    return without(data, {name: bad for name, bad in found.items() if bad})


def without(data: FamilyData, skipped: Mapping[str, Mapping[str, str]]) -> FamilyData:
    """The same without some images by split, which stand in `skipped` and in the notes.

    Raises RequestError when a class of train, val or test is left without images (of train alone,
    where the others lack classes anyhow), or a shift, or an extra.
    """
    splits = dict(data.splits)
    complete = ("train",) if data.uneven else IN_DISTRIBUTION
    for name, bad in skipped.items():
        whole = splits[name]
        good = [index for index, item in enumerate(whole.ids) if item not in bad]
        splits[name] = Subset(whole, good)
        gone = set(whole.labels.tolist()) - set(splits[name].labels.tolist())
        if gone and (not good or name in complete):
            names = _listed([data.class_names[label] for label in sorted(gone)])
            why = next(iter(bad.values()))
            raise RequestError(
                f"data.bad_files: {name} has no image of {names} that is whole: {why}"
            )
    return replace(
        data,
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        shifts={name: splits[f"shifts/{name}"] for name in data.shifts},
        extras={name: splits[f"extras/{name}"] for name in data.extras},
        skipped=skipped,
        notes=(*data.notes, *(note(name, bad) for name, bad in skipped.items())),
    )


def prepare(config: DataConfig) -> FamilyData:
    """The family's data as a run uses it: opened, with a val split, train cut to its fraction, or
    to its shots.

    Shifts that are not asked for go first, then bad files, if they are skipped. Val is carved
    before train is cut, so it is the same for every fraction and number of shots. A process opens
    the same data once; what changes on disk meanwhile is seen by the next process.
    Raises RequestError when the data cannot be used as asked, ValueError for a `split_seed` that
    is still to be a run's (`TrialConfig.for_seed`).
    """
    config = _placed(config)
    # The views are the transform's, the batches the loader's: the data are the same.
    plain = config.model_copy(update={"augmentation": None, "balanced": False})
    data = _prepared(plain, FAMILIES[config.family].open)
    if config.balanced and data.train.groups is None:
        raise RequestError(
            f"data.balanced: {config.family} has no domains to balance batches over; leave it out"
        )
    return data


def opened(config: DataConfig) -> FamilyData:
    """The family's data whole, with the shifts that are asked for: nothing carved, nothing skipped.

    Raises RequestError as `prepare` does.
    """
    config = _placed(config)
    return _asked_for(config, FAMILIES[config.family].open(config))


def _placed(config: DataConfig) -> DataConfig:
    """Of a family that there is, and with an absolute root."""
    if config.family not in FAMILIES:
        raise RequestError(f"data.family: {unknown('family', config.family, FAMILIES)}")
    if config.root is None:
        return config
    # A relative root means another folder once the process has moved.
    return config.model_copy(update={"root": str(Path(config.root).expanduser().absolute())})


def _asked_for(config: DataConfig, data: FamilyData) -> FamilyData:
    return data if config.shifts is None else _with_shifts(data, config.shifts)


@functools.lru_cache(maxsize=8)
def _prepared(config: DataConfig, open_: Callable[[DataConfig], FamilyData]) -> FamilyData:
    """`open_` is the family's own: one that is registered anew is opened anew."""
    return as_used(_asked_for(config, open_(config)), config)


def as_used(data: FamilyData, config: DataConfig) -> FamilyData:
    """What `prepare` makes of opened data: bad files skipped, val carved, train cut.

    Raises RequestError when there is too little of them for that.
    """
    if config.bad_files == "skip":
        data = without_bad_files(data)
    train, val = data.train, data.val
    if val is None:
        train, val = carve(
            train,
            val_fraction=config.val_fraction,
            split_seed=config.split_number,
            class_names=data.class_names,
        )
    if config.shots is None:
        train = take_fraction(train, config.train_fraction, config.split_number)
        return replace(data, train=train, val=val)
    train, short = take_shots(train, config.shots, config.split_number)
    notes = data.notes
    if short:
        names = _listed([data.class_names[label] for label in short])
        notes = (*notes, f"data.shots: train has fewer than {config.shots} images of {names}")
    return replace(data, train=train, val=val, notes=notes)


def _with_shifts(data: FamilyData, asked: Sequence[str]) -> FamilyData:
    """The same data measured on some of its shifts; their choice is a part of its digest.

    Extras are always measured, and unions of what is there.
    """
    shifts = {name: data.shifts[name] for name in named_shifts(asked, data.shifts)}
    if tuple(shifts) == tuple(data.shifts):
        return data
    there = {*shifts, *data.extras}
    unions = {name: of for name, of in data.unions.items() if there.issuperset(of)}
    digest = hashlib.sha256("\0".join([data.digest, *shifts]).encode()).hexdigest()
    return replace(
        data,
        shifts=shifts,
        unions=unions,
        digest=digest,
        training_digest=data.digest_of_training,
    )


def _share(count: int, fraction: float) -> int:
    """The nearest number of `count` units, halves upwards, at least one."""
    return max(1, math.floor(count * fraction + 0.5))


def _units_by_class(split: Split, salt: str) -> dict[int, list[str]]:
    """Each class's units in an order drawn by hashing their names with `salt`.

    A hash, not a permutation: adding an image leaves the places of the others alone.
    """
    label_of: dict[str, int] = {}
    for unit, label in zip(split.units, split.labels.tolist(), strict=True):
        if label_of.setdefault(unit, label) != label:
            raise RequestError(
                f"unit {unit!r} holds images of several classes, so it cannot be divided by class"
            )
    classes: dict[int, list[str]] = {label: [] for label in sorted(set(label_of.values()))}
    for unit in sorted(label_of, key=lambda name: _hashed(salt, name)):
        classes[label_of[unit]].append(unit)
    return classes


def _hashed(salt: str, name: str) -> bytes:
    return hashlib.sha256(f"{salt}\0{name}".encode()).digest()


def _listed(names: Sequence[str]) -> str:
    """The first few names."""
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
