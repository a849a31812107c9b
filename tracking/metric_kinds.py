"""What kind of number a metric is: a fraction to be shown in percent or not, better up or down."""

from __future__ import annotations

from typing import Literal

Direction = Literal[1, -1, 0]

_FRACTIONS = frozenset({"top1", "ece"})
_LOSSES = frozenset({"nll", "ece", "brier"})


def is_fraction(metric: str) -> bool:
    """Whether tables show it in percent."""
    return metric.rpartition("/")[2] in _FRACTIONS


def direction(metric: str) -> Direction:
    """1: more is better (accuracies); -1: less is (losses, errors, the gap); 0: neither.

    How far a model has moved (`context/...`) and what it cost (`system/...`) are no merits.
    """
    kind = metric.rpartition("/")[2]
    if metric.startswith(("gap/", "train/")) or kind in _LOSSES:
        return -1
    return 1 if kind == "top1" else 0
