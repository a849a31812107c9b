"""Names and kinds of metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Literal, get_args

ID = "id/test/top1"
OOD = "ood/mean/top1"
By = Literal["top1", "macro_f1", "mean_per_class_top1", "mean_group_top1", "worst_group_top1"]
KINDS: tuple[By, ...] = get_args(By)
TOP1: By = "top1"
LOSSES = ("nll", "ece", "brier")
"""Kinds of metrics of a split besides its accuracies."""
BENCHMARK = "benchmark"
"""Kind of a mean over tasks, each measured by its own kind of accuracy."""
SPLITS: Mapping[str, str] = {"id/val": "ID val", "id/test": "ID test", "ood/mean": "OOD mean"}
NOUNS: Mapping[str, str] = {
    TOP1: "accuracy",
    "macro_f1": "macro-F1",
    "mean_per_class_top1": "mean-per-class accuracy",
    "mean_group_top1": "mean-group accuracy",
    "worst_group_top1": "worst-group accuracy",
    BENCHMARK: "benchmark accuracy",
}
"""Names of kinds of accuracy in sentences."""
TITLES: Mapping[str, str] = {**NOUNS, TOP1: "top-1"}
"""Names of kinds of accuracy on axes and in titles."""


def kind_of(metric: str) -> str:
    """Return `macro_f1` of `id/test/macro_f1`."""
    return metric.rpartition("/")[2]


def capitalised(name: str) -> str:
    """Return the text with a capital first letter, for the beginning of a sentence."""
    return name[:1].upper() + name[1:]


def named(metric: str) -> str:
    """Return a metric's name for a sentence: `OOD mean` for top-1, else `OOD mean macro-F1`."""
    split, _, kind = metric.rpartition("/")
    where = SPLITS.get(split, split)
    return where if kind == TOP1 else f"{where} {TITLES.get(kind, kind)}"


def is_accuracy(metric: str) -> bool:
    """Return whether a metric is an accuracy of any kind."""
    return kind_of(metric) in (*KINDS, BENCHMARK)


def is_fraction(metric: str) -> bool:
    """Return whether tables show a metric in percent."""
    return is_accuracy(metric) or kind_of(metric) == "ece"


_SPLITS = ("id/", "ood/", "retention/")
_CURVE = ("id/val", "id/test", "ood/mean")


def has_series(metric: str, *, of: Literal["run", "merge", "alpha"] = "run") -> bool:
    """Return whether MLflow gets a metric as a series of its own, since its pages cannot show
    hundreds. `comparison_input.json` has all metrics.

    `of` says whose metric it is. Of a run's own model all metrics are logged but those of single
    shifts that are no accuracy, and those of contexts that are no KL. Of a merge: all accuracies.
    Of one alpha among several: the accuracies that select it or draw the curve (`id/val`,
    `id/test`, `ood/mean`).
    """
    split = metric.rpartition("/")[0]
    if of != "run":
        is_shown = split in _CURVE if of == "alpha" else split.startswith(_SPLITS)
        return is_shown and is_accuracy(metric)
    if metric.startswith("ood/") and not metric.startswith(("ood/mean/", "ood/val/")):
        return is_accuracy(metric)
    return kind_of(metric) == "kl" or not metric.startswith("context/")


def shifts(names: Collection[str], by: str = TOP1) -> list[tuple[str, str]]:
    """Return (name, metric) of each shift that has an accuracy of kind `by`. A shift named `test`
    or `val` is called `OOD test` or `OOD val`."""
    end = f"/{by}"
    every = sorted(name for name in names if name.startswith("ood/") and name.endswith(end))
    short = {name: name[len("ood/") : -len(end)] for name in every if name != f"ood/mean{end}"}
    return [(name, f"OOD {s}" if s in ("val", "test") else s) for name, s in short.items()]


_GROUPS = (
    "id/val/",
    "id/test/",
    "id/test_",
    "ood/mean/",
    "gain/",
    "gap/",
    "hmean/",
    "ood/",
    "retention/",
    "retention/mean/",
    "retention/gain/",
    "context/",
    "train/",
)


@cache
def metric_order(name: str) -> tuple[int, str, int, str]:
    """Return the sort key of a metric: ID before OOD, the mean over shifts before single shifts by
    name, top-1 before other kinds."""
    kinds = ("top1", "nll", "ece", "brier")
    where, _, kind = name.rpartition("/")
    fits = [group for group in _GROUPS if name.startswith(group)]
    place = _GROUPS.index(max(fits, key=len)) if fits else len(_GROUPS)
    rank = kinds.index(kind) if kind in kinds else len(kinds)
    return (place, where, rank, kind)
