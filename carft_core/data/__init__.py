"""The families of data sets by name; users register their own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from carft_sweep.carft_core.config.registry import Registry
from carft_sweep.carft_core.data.base import (
    DataConfig,
    DataFolder,
    Family,
    FamilyData,
    Source,
    Split,
    cache_open,
    named_shifts,
)
from carft_sweep.carft_core.data.contract import open_checked
from carft_sweep.carft_core.data.families.domainbed import DOMAIN_BED
from carft_sweep.carft_core.data.families.downstream import DOWNSTREAM
from carft_sweep.carft_core.data.families.icon_shift import ICON_SHIFT, ICON_SHIFT_DEV
from carft_sweep.carft_core.data.families.image_folder import IMAGE_FOLDER
from carft_sweep.carft_core.data.families.imagenet import IMAGENET
from carft_sweep.carft_core.data.families.wilds import FMOW, IWILDCAM
from carft_sweep.carft_core.data.listing import join_names
from carft_sweep.carft_core.data.splits import carve, take_fraction, take_shots
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.data.unreadable import refuse_bad_files, without_bad_files
from carft_sweep.carft_core.errors import RequestError

FEW_TO_CHOOSE = 50
"""Images of a carved validation set: with fewer a note says how coarse its accuracy is."""
FAMILIES: Registry[Family] = Registry("family", Family, function="open")
FAMILIES.register(ICON_SHIFT)
FAMILIES.register(ICON_SHIFT_DEV)
FAMILIES.register(IMAGE_FOLDER)
FAMILIES.register(IMAGENET)
FAMILIES.register(IWILDCAM)
FAMILIES.register(FMOW)
for _family in (*DOMAIN_BED, *DOWNSTREAM):
    FAMILIES.register(_family)


def open_data(config: DataConfig) -> FamilyData:
    """Return the family's data as a run uses them: with a validation split carved from train, and
    train cut to its fraction or its shots.

    Shifts that are not requested are left out first, then bad files, if these are skipped. Val is
    carved before train is cut, so val is the same for every fraction and number of shots. A process
    opens the same data once; changes on disk are seen after `forget_data`. Raises RequestError when
    the data cannot be used as requested, ValueError for a `split_seed` that a run's seed must
    replace first (`TrialConfig.for_seed`).
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


def open_whole(config: DataConfig) -> FamilyData:
    """Return all of a family's data, with the requested shifts: nothing carved, nothing skipped.
    Raises RequestError as `open_data` does."""
    config = _placed(config)
    return _with_shifts(open_checked(config, FAMILIES[config.family].open), config.shifts)


def _placed(config: DataConfig) -> DataConfig:
    """Return the config with an absolute root. Raises RequestError for an unknown family."""
    if config.family not in FAMILIES:
        raise RequestError(f"data.family: {FAMILIES.unknown(config.family)}")
    if config.root is None:
        return config
    # A relative root means another folder once the process has moved.
    return config.model_copy(update={"root": str(Path(config.root).expanduser().absolute())})


@cache_open(8)
def _prepared(config: DataConfig, open_: Callable[[DataConfig], FamilyData]) -> FamilyData:
    """Return a family's data as a run uses them, cached by config and by `open_`, so that a newly
    registered function opens them anew."""
    return as_used(_with_shifts(open_checked(config, open_), config.shifts), config)


def as_used(data: FamilyData, config: DataConfig) -> FamilyData:
    """Return opened data as a run uses them: bad files skipped, val carved, train cut. Raises
    RequestError when a class has too few images, and for bad files that are not to be skipped."""
    if config.bad_files == "skip":
        data = without_bad_files(data)
    else:
        refuse_bad_files(data)
    train, val, notes = data.train, data.val, data.notes
    is_drawn = val is None or config.shots is not None or config.train_fraction != 1
    data = replace(data, has_fixed_splits=data.has_fixed_splits and not is_drawn)
    if val is None:
        train, val = carve(
            train,
            val_fraction=config.val_fraction,
            split_seed=config.split_number,
            class_names=data.class_names,
        )
        if len(val) < FEW_TO_CHOOSE:
            points = f"each is {100 / len(val):.1f} points of the accuracy that chooses settings"
            notes = (*notes, f"id/val, carved from train, has {len(val)} images: {points}")
    if config.shots is None:
        train = take_fraction(train, config.train_fraction, config.split_number)
        return replace(data, train=train, val=val, notes=notes)
    train, short = take_shots(train, config.shots, config.split_number)
    if short:
        names = join_names([data.class_names[label] for label in short])
        notes = (*notes, f"data.shots: train has fewer than {config.shots} images of {names}")
    return replace(data, train=train, val=val, notes=notes)


def _with_shifts(data: FamilyData, asked: Sequence[str] | None) -> FamilyData:
    """Return the same data measured only on the shifts `asked`, which become a part of the digest;
    None: all. Extras are always measured, as are derived sets of the remaining splits."""
    if asked is None:
        return data
    shifts = {name: data.shifts[name] for name in named_shifts(asked, data.shifts)}
    if tuple(shifts) == tuple(data.shifts):
        return data
    less = replace(
        data,
        shifts=shifts,
        digest=hashlib.sha256("\0".join([data.digest, *shifts]).encode()).hexdigest(),
        training_digest=data.digest_of_training,
    )
    measured = less.measured()
    means = {
        name: tuple(shift for shift in of if shift in measured)
        for name, of in data.own_means.items()
    }
    return replace(
        less,
        derived={
            name: derived
            for name, derived in data.derived.items()
            if measured.keys() >= {*derived.of}
        },
        own_means={name: of for name, of in means.items() if of},
    )


__all__ = [
    "FAMILIES",
    "DataFolder",
    "Family",
    "FamilyData",
    "Source",
    "Split",
    "Transform",
    "as_used",
    "open_data",
    "open_whole",
]
