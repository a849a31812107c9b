"""What kind of number a metric is: a fraction to be shown in percent or not, better up or down."""

from __future__ import annotations

from typing import Literal

from tracking.accuracy import BENCHMARK, KINDS

Direction = Literal[1, -1, 0]

_ACCURACIES = frozenset({*KINDS, BENCHMARK})
_FRACTIONS = _ACCURACIES | {"ece"}
_LOSSES = frozenset({"nll", "ece", "brier"})


def is_fraction(metric: str) -> bool:
    """Whether tables show it in percent."""
    return metric.rpartition("/")[2] in _FRACTIONS


def is_told(metric: str, *, merged: bool = False) -> bool:
    """Whether a metric has a series of its own in MLflow, whose pages drown in hundreds of them.

    Of every split its accuracies: top-1, and what its benchmark ranks by; the other kinds of
    validation (`id/val`, `ood/val`), test and the mean over shifts, and how far the context has
    moved on each split, of the model that a run trained alone. `result.json` holds all.
    """
    kind = metric.rpartition("/")[2]
    if merged:
        return kind in _ACCURACIES
    if metric.startswith("ood/") and not metric.startswith(("ood/mean/", "ood/val/")):
        return kind in _ACCURACIES
    return kind == "kl" or not metric.startswith("context/")


def direction(metric: str) -> Direction:
    """1: more is better (accuracies); -1: less is (losses, errors, the gap); 0: neither.

    How far a model has moved (`context/...`) and what it cost (`system/...`) are no merits.
    """
    kind = metric.rpartition("/")[2]
    if metric.startswith(("gap/", "train/")) or kind in _LOSSES:
        return -1
    return 1 if kind in _ACCURACIES else 0
