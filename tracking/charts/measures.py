"""Metrics on axes: their names in words with units, and their values in the unit of the axis."""

from __future__ import annotations

from tracking.accuracy import SPLITS, TITLES
from tracking.metric_kinds import is_fraction
from tracking.statistics import Interval

_KINDS = {**TITLES, "nll": "NLL", "ece": "ECE", "brier": "Brier score", "kl": "KL"}
_NATS = frozenset({"nll", "kl", "entropy"})


def split_name(split: str) -> str:
    """`ID test` of `id/test`, `ID test r` of `id/test_r`, `outline` of `ood/outline`."""
    return SPLITS.get(split, split.removeprefix("ood/").replace("id/test_", "ID test "))


def short(metric: str) -> str:
    """Without the unit: `ID test top-1`, `train loss`."""
    split, _, kind = metric.rpartition("/")
    return f"{split_name(split)} {_KINDS.get(kind, kind)}".strip()


def titled(metric: str) -> str:
    """`ID test top-1 (%)`."""
    return short(metric) + _unit(metric)


def scaled(metric: str, value: float) -> float:
    """In percent with three decimals, or as it is with six digits."""
    return percent(value) if is_fraction(metric) else float(f"{value:.6g}")


def form(metric: str) -> str:
    """How a tooltip writes it."""
    return ".1f" if is_fraction(metric) else ".4g"


def percent(fraction: float) -> float:
    """A fraction in percent, short enough for a page of thousands of them."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return round(100 * fraction, 3) + 0.0


def ends(ci95: Interval | None, name: str) -> dict[str, float]:
    """`{name low, name high}` in percent; nothing below 3 seeds."""
    if ci95 is None:
        return {}
    return {f"{name} low": percent(ci95.low), f"{name} high": percent(ci95.high)}


def _unit(metric: str) -> str:
    if is_fraction(metric):
        return " (%)"
    return " (nats)" if metric.rpartition("/")[2] in _NATS else ""
