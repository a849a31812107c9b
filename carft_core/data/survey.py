"""What lies on disk of a family: what is there, what is missing, what cannot be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from carft_core.data import FAMILIES, as_used, open_whole
from carft_core.data.base import DataConfig, Family, FamilyData, FoundSplit, Split
from carft_core.data.folders import data_root, look_at
from carft_core.data.splits import IN_DISTRIBUTION
from carft_core.errors import RequestError, unknown

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
        raise RequestError(f"data.family: {unknown('family', config.family, FAMILIES)}")
    family = FAMILIES[config.family]
    seen = _places(family, config) if family.look is None else family.look(config)
    try:
        whole = open_whole(config)
    except RequestError as error:
        return _refused(config, seen, str(error))
    splits = dict(_merged(whole, seen))
    try:
        return Survey(config, splits, as_used(whole, config), None)
    except RequestError as error:
        return Survey(config, splits, None, str(error))


def _refused(config: DataConfig, seen: Mapping[str, FoundSplit], told: str) -> Survey:
    wrong = [problem for split in seen.values() for problem in split.problems]
    more = [f"  {problem}" for problem in wrong if problem not in told]
    more = ["And of what is there:", *more] if more else []
    shifts = [name for name in seen if name.startswith(SHIFT)]
    good = tuple(
        name.removeprefix(SHIFT) for name in shifts if seen[name].status not in ("missing", "wrong")
    )
    refusal = "\n".join([told, *more])
    if len(good) == len(shifts):
        return Survey(config, seen, None, refusal)
    less = config.model_copy(update={"shifts": good})
    try:
        whole = open_whole(less)
        as_used(whole, less)
    except RequestError:
        return Survey(config, seen, None, refusal)
    splits = {**seen, **dict(_merged(whole, seen))}
    return Survey(config, splits, None, refusal, good)


def _places(family: Family, config: DataConfig) -> dict[str, FoundSplit]:
    """The folders of a family that says no more of them than where they lie: there or not."""
    wanted = {
        name: folder for name, folder in family.folders.items() if _is_asked_for(name, config)
    }
    if not wanted:
        return {}
    root = data_root(config, wanted)
    return {
        name if name in IN_DISTRIBUTION or "/" in name else f"{SHIFT}{name}": look_at(root, folder)
        for name, folder in wanted.items()
    }


def _is_asked_for(name: str, config: DataConfig) -> bool:
    """Whether a folder is one of train and test, or of a shift that `data.shifts` means."""
    kind, _, name = name.rpartition("/")
    if config.shifts is None or kind == "extras" or (not kind and name in IN_DISTRIBUTION):
        return True
    return any(f"{name}-".startswith(f"{shift}-") for shift in config.shifts)


def _merged(data: FamilyData, seen: Mapping[str, FoundSplit]) -> Iterator[tuple[str, FoundSplit]]:
    """The splits of opened data, with what is known of their folders."""
    for name, split in data.splits.items():
        folder = name.partition("/")[2] or name
        # An extra's folder is told of as if it were a shift's while nothing could be opened.
        known = seen.get(name, seen.get(f"{SHIFT}{folder}", FoundSplit()))
        possible = len(data.class_names) if split.classes is None else len(split.classes)
        yield (
            name,
            replace(
                known,
                images=len(split),
                classes=len(split.labels.unique()),
                expected_classes=possible,
                digest=data.digests.get(name) or _digest(split),
            ),
        )


def _digest(split: Split) -> str:
    """Over every image's id and label, where the family has no digest of the split's content."""
    items = sorted(zip(split.ids, split.labels.tolist(), strict=True))
    told = "".join(f"{item}\0{label}\n" for item, label in items)
    return hashlib.sha256(told.encode()).hexdigest()
