"""Names of metrics, and which of them a sweep can be chosen by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from carft_sweep.carft_core.errors import RequestError, unknown
from carft_sweep.tracking.comparison.metrics import KINDS, LOSSES, TOP1

if TYPE_CHECKING:
    from carft_sweep.carft_core.config.trial import TrialConfig
    from carft_sweep.carft_core.data import FamilyData

Goal = Literal["maximize", "minimize"]

QUANTITIES = (TOP1, *LOSSES)
FURTHER = KINDS[1:]
"""Quantities that only some families measure."""
_SPLITS = ("id/val", "id/test", "id/test_PART", "ood/mean", "ood/SHIFT")
NAMES = (
    "train/loss",
    *(f"{split}/{quantity}" for split in _SPLITS for quantity in (*QUANTITIES, *FURTHER)),
    "gap/top1",
    "hmean/top1",
    "gain/ood/top1",
    "retention/FAMILY/top1",
    "retention/mean/top1",
    "retention/gain/top1",
    "context/SPLIT/kl",
    "context/SPLIT/entropy",
    "system/images_per_s",
    "system/peak_memory_mb",
)
"""All names: SHIFT, PART and SPLIT stand for names in the family, FAMILY for another family; each
term of the loss is a `train/` metric too."""
PATTERN = (
    rf"(train/\w+|(id/val|id/test(_\w+)?|ood/[^/\s]+)/({'|'.join((*QUANTITIES, *FURTHER))})"
    r"|gap/top1|hmean/top1"
    r"|gain/ood/top1|retention/\w+/top1|context/\S+/(kl|entropy)|system/(images_per_s|peak_memory_mb))"
)
_SMALLER_IS_BETTER = re.compile(r"(^train/|/nll$|/ece$|/brier$|/kl$|^gap/|memory)")


def problem(name: str) -> str | None:
    """Return what is wrong with a metric's name, or None."""
    if re.fullmatch(PATTERN, name):
        return None
    if re.fullmatch(f"[a-z_]+/{PATTERN}", name):
        merge, rest = name.split("/", 1)
        return f"write {rest!r}, and the merge's point apart: merge: {merge}@..."
    return f"{unknown('metric', name, NAMES)} Validation accuracy is id/val/top1."


def natural_goal(name: str) -> Goal:
    """Return the direction in which the metric is better."""
    return "minimize" if _SMALLER_IS_BETTER.search(name) else "maximize"


def is_reported(name: str, *, every_epoch: bool) -> bool:
    """Return whether runs report the metric `name` at each epoch: those of training and id/val, and
    with `every_epoch` (`eval.every_epoch`) those of tests and of single shifts."""
    if name.startswith(("id/val/", "train/")):
        return True
    return every_epoch and name.startswith(("id/test/", "ood/")) and name[:9] != "ood/mean/"


_OF_BOTH = ("gap/top1", "hmean/top1")
"""Metrics of the ID test and the shifts together."""


def check_measured(name: str, config: TrialConfig, data: FamilyData, key: str = "metric") -> None:
    """Raise RequestError where runs of `config` on `data` have no metric `name`, the value of the
    file's `key`. Names that are of no data split (`train/...`, `context/...`, ...) pass."""
    split, _, kind = name.rpartition("/")
    of_splits = kind in (*QUANTITIES, *FURTHER) and split.startswith(("id/", "ood/"))
    known = tuple(_names(config, data))
    if name in known or not (of_splits or name in (*_OF_BOTH, "gain/ood/top1")):
        return
    family, known_splits = config.data.family, dict.fromkeys(n.rpartition("/")[0] for n in known)
    if of_splits and split in known_splits:
        kinds = [name.rpartition("/")[2] for name in known if name.rpartition("/")[0] == split]
        raise RequestError(f"{key}: {family} has no {name}; of {split} it has {', '.join(kinds)}")
    measured = ", ".join(name for name in known_splits if name.startswith(("id/", "ood/")))
    raise RequestError(f"{key}: {family} has no {name}; it is measured on {measured}")


def _names(config: TrialConfig, data: FamilyData) -> Iterator[str]:
    """Yield the names of the metrics that a run of `config` measures on the splits of `data`."""
    from carft_sweep.carft_core.data import FAMILIES  # loads torch, and `compare` reads names alone

    family = FAMILIES[config.data.family]
    splits = {"id/val": data.val or data.train, **data.measured()}
    grouped = {name: split.groups is not None for name, split in splits.items()}
    grouped |= {name: all(grouped[of] for of in mean.of) for name, mean in data.derived.items()}
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
