"""The WiSE-FT curve: what ID and OOD accuracy fine-tuning reaches by interpolating its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tracking.comparison.metrics import ID, OOD
from tracking.comparison.runs import Arm, split_merge
from tracking.comparison.statistics import mean

WISE = "wise_ft"
_ROUNDING = 1e-12


class Point(NamedTuple):
    """One interpolated model; accuracies are fractions."""

    alpha: float
    id: float
    ood: float


@dataclass(frozen=True)
class Curve:
    """One arm's points by rising alpha: 0 is the zero-shot model, 1 the tuned one."""

    label: str
    points: tuple[Point, ...]


def seed_curves(
    arm: Arm, zero_shot: Arm | None = None, id_metric: str = ID, ood_metric: str = OOD
) -> dict[int | None, Curve]:
    """Build, by seed, the curve of each finished run that was measured between the ends.

    `id_metric` and `ood_metric` are its axes. Where alpha 1 was not requested, the run itself
    stands there, and at alpha 0 the zero-shot model: by definition these are the same weights.
    """
    axes = (id_metric, ood_metric)
    seeds = [run.seed for run in arm.done]
    starts = [{} if zero_shot is None else zero_shot.values(metric, seeds) for metric in axes]
    curves = {}
    for run in arm.done:
        places = {0.0: [start.get(run.seed) for start in starts]}
        for label in (None, *run.merges):
            name, alpha = (WISE, 1.0) if label is None else split_merge(label)
            values = [run.value(metric, label) for metric in axes]
            if name == WISE and alpha is not None and None not in values:
                places[alpha] = values
        points = [
            Point(alpha, x, y)
            for alpha, (x, y) in sorted(places.items())
            if x is not None and y is not None
        ]
        if any(0 < point.alpha < 1 for point in points):
            curves[run.seed] = Curve(arm.label, tuple(points))
    return curves


def mean_curve(arm: Arm, curves: Mapping[int | None, Curve]) -> Curve | None:
    """Average the curves of an arm at the alphas that all have; None unless each run has one."""
    if not curves or len(curves) < len(arm.done):
        return None
    by_alpha = [{point.alpha: point for point in curve.points} for curve in curves.values()]
    points = [
        Point(
            alpha,
            mean([points[alpha].id for points in by_alpha]),
            mean([points[alpha].ood for points in by_alpha]),
        )
        for alpha in sorted(set.intersection(*map(set, by_alpha)))
    ]
    return Curve(arm.label, tuple(points))


def ood_at(curve: Curve, id_accuracy: float) -> float | None:
    """Interpolate the curve's OOD accuracy at this ID accuracy, linearly between neighbours.

    Where the curve passes the ID accuracy more than once the highest OOD counts, which is against
    whoever is compared with it. None outside the curve's ID range.
    """
    crossings = []
    for one, two in zip(curve.points, curve.points[1:], strict=False):
        low, high = sorted((one, two), key=lambda point: point.id)
        if not low.id - _ROUNDING <= id_accuracy <= high.id + _ROUNDING:
            continue
        if high.id - low.id <= _ROUNDING:
            crossings.append(max(low.ood, high.ood))
        else:
            share = min(1.0, max(0.0, (id_accuracy - low.id) / (high.id - low.id)))
            crossings.append(low.ood + share * (high.ood - low.ood))
    return max(crossings, default=None)


def dominating(curve: Curve, id_accuracy: float, ood_accuracy: float) -> Point | None:
    """Find the measured model with the highest OOD that is as good on both and better on one."""
    above = [
        p
        for p in curve.points
        if min(p.id - id_accuracy, p.ood - ood_accuracy) >= -_ROUNDING
        and max(p.id - id_accuracy, p.ood - ood_accuracy) > _ROUNDING
    ]
    return max(above, key=lambda point: point.ood, default=None)
