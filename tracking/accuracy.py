"""Which accuracy methods are ranked by, under which metrics it stands, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

By = Literal["top1", "macro_f1", "mean_per_class_top1", "mean_group_top1", "worst_group_top1"]
KINDS: tuple[By, ...] = get_args(By)
TOP1: By = "top1"
BENCHMARK = "benchmark"
"""Of a mean over tasks: that of each task's own kind."""
SPLITS: Mapping[str, str] = {"id/val": "ID val", "id/test": "ID test", "ood/mean": "OOD mean"}
NOUNS: Mapping[str, str] = {
    TOP1: "accuracy",
    "macro_f1": "macro-F1",
    "mean_per_class_top1": "mean-per-class accuracy",
    "mean_group_top1": "mean-group accuracy",
    "worst_group_top1": "worst-group accuracy",
    BENCHMARK: "benchmark accuracy",
}
"""As sentences say it."""
TITLES: Mapping[str, str] = {**NOUNS, TOP1: "top-1"}
"""As axes and titles say it."""


def kind_of(metric: str) -> str:
    """`macro_f1` of `id/test/macro_f1`."""
    return metric.rpartition("/")[2]


def capitalised(name: str) -> str:
    """As a sentence begins; what has capitals keeps them."""
    return name[:1].upper() + name[1:]


def named(metric: str) -> str:
    """As sentences say a metric: `OOD mean` of top-1, `OOD mean macro-F1` of another kind."""
    split, _, kind = metric.rpartition("/")
    where = SPLITS.get(split, split)
    return where if kind == TOP1 else f"{where} {TITLES.get(kind, kind)}"


def titled(metric: str) -> str:
    """As axes say it: `OOD mean top-1`."""
    split, _, kind = metric.rpartition("/")
    return f"{SPLITS.get(split, split)} {TITLES.get(kind, kind)}"
