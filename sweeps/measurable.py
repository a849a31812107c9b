"""Whether runs on a family have what a sweep values them by: said before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

from carft_core.config import TrialConfig
from carft_core.data import FAMILIES, FamilyData
from carft_core.errors import RequestError
from sweeps.metric_names import FURTHER, QUANTITIES

_OF_BOTH = ("gap/top1", "hmean/top1")
"""Of an ID test and shifts together."""


def check_measured(name: str, config: TrialConfig, data: FamilyData) -> None:
    """Raise RequestError where runs of `config` on `data` have no metric of this name.

    A metric whose name says nothing of splits (`train/...`, `context/...`, `system/...`) passes.
    """
    split, _, kind = name.rpartition("/")
    of_splits = kind in (*QUANTITIES, *FURTHER) and split.startswith(("id/", "ood/"))
    known = tuple(_names(config, data))
    if name in known or not (of_splits or name in (*_OF_BOTH, "gain/ood/top1")):
        return
    family, known_splits = config.data.family, dict.fromkeys(n.rpartition("/")[0] for n in known)
    if of_splits and split in known_splits:
        kinds = [one.rpartition("/")[2] for one in known if one.rpartition("/")[0] == split]
        raise RequestError(f"metric: {family} has no {name}; of {split} it has {', '.join(kinds)}")
    told = ", ".join(one for one in known_splits if one.startswith(("id/", "ood/")))
    raise RequestError(f"metric: {family} has no {name}; it is measured on {told}")


def _names(config: TrialConfig, data: FamilyData) -> Iterator[str]:
    """What of splits a run measures."""
    family = FAMILIES[config.data.family]
    splits = {"id/val": data.val or data.train, **data.measured()}
    grouped = {name: split.groups is not None for name, split in splits.items()}
    grouped |= {name: all(grouped[of] for of in it.of) for name, it in data.derived.items()}
    grouped |= {name: any(grouped[of] for of in shifts) for name, shifts in data.own_means.items()}
    in_mean = [name for name in data.measured() if name[:4] == "ood/"]
    in_mean = [name for name in in_mean if name not in data.outside_mean]
    if in_mean:
        grouped["ood/mean"] = any(grouped[name] for name in in_mean)
    for split, has_groups in grouped.items():
        further = [k for k in family.metrics if has_groups or "_group_" not in k]
        yield from (f"{split}/{kind}" for kind in (*QUANTITIES, *further))
    if in_mean:
        yield from (*(_OF_BOTH if data.test is not None else ()), "gain/ood/top1")
