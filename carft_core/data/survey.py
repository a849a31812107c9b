"""What lies on disk of a family: what is there, what is missing, what cannot be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from carft_sweep.carft_core.data import FAMILIES, as_used, open_whole
from carft_sweep.carft_core.data.base import DataConfig, Family, FamilyData, FoundSplit, Split
from carft_sweep.carft_core.data.folders import data_root, look_at, readable
from carft_sweep.carft_core.data.splits import IN_DISTRIBUTION
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.own_code import told

SHIFT = "shifts/"


@dataclass(frozen=True)
class Survey:
    """A family's data as found."""

    config: DataConfig
    splits: Mapping[str, FoundSplit]
    """Named as in `FamilyData.splits`."""
    data: FamilyData | None
    """As a run uses it; None where a run would refuse it."""
    refusal: str | None
    """Everything for which a run would refuse it."""
    usable: tuple[str, ...] | None = None
    """Where it is refused: a choice of shifts with which it would not be."""


def survey(config: DataConfig) -> Survey:
    """Look at the data that a config speaks of.

    Raises RequestError where there is nothing to look at: no such family, no such data root.
    """
    if config.family not in FAMILIES:
        raise RequestError(f"data.family: {FAMILIES.unknown(config.family)}")
    family = FAMILIES[config.family]
    splits_on_disk = _looked_at(family, config)
    try:
        whole = open_whole(config)
    except RequestError as error:
        return _refused(config, splits_on_disk, str(error))
    splits = dict(_merged(whole, splits_on_disk))
    try:
        return Survey(config, splits, as_used(whole, config), None)
    except RequestError as error:
        return Survey(config, splits, None, str(error))


def _refused(
    config: DataConfig, splits_on_disk: Mapping[str, FoundSplit], refusal_text: str
) -> Survey:
    problems = [problem for split in splits_on_disk.values() for problem in split.problems]
    others = [f"  {problem}" for problem in problems if problem not in refusal_text]
    others = ["And of what is there:", *others] if others else []
    shifts = [name for name in splits_on_disk if name.startswith(SHIFT)]
    usable = tuple(
        name.removeprefix(SHIFT)
        for name in shifts
        if splits_on_disk[name].status not in ("missing", "wrong")
    )
    refusal = "\n".join([refusal_text, *others])
    if len(usable) == len(shifts):
        return Survey(config, splits_on_disk, None, refusal)
    narrower = config.model_copy(update={"shifts": usable})
    try:
        whole = open_whole(narrower)
        as_used(whole, narrower)
    except RequestError:
        return Survey(config, splits_on_disk, None, refusal)
    splits = {**splits_on_disk, **dict(_merged(whole, splits_on_disk))}
    return Survey(config, splits, None, refusal, usable)


def _looked_at(family: Family, config: DataConfig) -> Mapping[str, FoundSplit]:
    if family.look is None:
        return _places(family, config)
    with told(f"data.family: {family.name}", family.look):
        return family.look(config)


def _places(family: Family, config: DataConfig) -> dict[str, FoundSplit]:
    """The folders of a family that says no more of them than `DataFolder` does."""
    folders = {
        name: folder for name, folder in family.folders.items() if _is_asked_for(name, config)
    }
    if not folders:
        return {}
    root = data_root(config, folders)
    named = {
        name if name in IN_DISTRIBUTION or "/" in name else f"{SHIFT}{name}": folder
        for name, folder in folders.items()
    }
    with readable():
        return {name: look_at(root, folder) for name, folder in named.items()}


def _is_asked_for(name: str, config: DataConfig) -> bool:
    """Whether a folder is one of train and test, or of a shift that `data.shifts` means."""
    kind, _, name = name.rpartition("/")
    if config.shifts is None or kind == "extras" or (not kind and name in IN_DISTRIBUTION):
        return True
    return any(f"{name}-".startswith(f"{shift}-") for shift in config.shifts)


def _merged(
    data: FamilyData, splits_on_disk: Mapping[str, FoundSplit]
) -> Iterator[tuple[str, FoundSplit]]:
    """The splits of opened data, with what is known of their folders."""
    for name, split in data.splits.items():
        folder = name.partition("/")[2] or name
        # An extra's folder is told of as if it were a shift's while nothing could be opened.
        on_disk = splits_on_disk.get(name, splits_on_disk.get(f"{SHIFT}{folder}", FoundSplit()))
        possible = len(data.class_names) if split.classes is None else len(split.classes)
        yield (
            name,
            replace(
                on_disk,
                images=len(split),
                classes=len(split.labels.unique()),
                expected_classes=possible,
                digest=data.digests.get(name) or _digest(split),
            ),
        )


def _digest(split: Split) -> str:
    """Over every image's id and label, where the family has no digest of the split's content."""
    items = sorted(zip(split.ids, split.labels.tolist(), strict=True))
    text = "".join(f"{item}\0{label}\n" for item, label in items)
    return hashlib.sha256(text.encode()).hexdigest()
