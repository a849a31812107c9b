"""The WiSE-FT curve: what ID and OOD accuracy fine-tuning reaches by interpolating its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tracking.comparison.metrics import ID, OOD
from tracking.comparison.runs import Arm, RunRecord, merge_name, merge_number
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


def run_curve(
    run: RunRecord,
    zero_shot: RunRecord | None = None,
    id_metric: str = ID,
    ood_metric: str = OOD,
) -> Curve | None:
    """Build the curve of one run, or None when no model between the ends was measured.

    `id_metric` and `ood_metric` are its axes.

    Where alpha 1 was not asked for, the run itself stands there, and at alpha 0 the zero-shot
    run if given: by definition these are the same weights.
    """
    models: list[tuple[float, RunRecord, str | None]] = [(1.0, run, None)]
    if zero_shot is not None:
        models.insert(0, (0.0, zero_shot, None))
    for label in run.merges:
        alpha = merge_number(label)
        if merge_name(label) == WISE and alpha is not None:
            models.append((alpha, run, label))
    points: dict[float, Point] = {}
    for alpha, measured, merge in models:
        x, y = (measured.value(metric, merge) for metric in (id_metric, ood_metric))
        if x is not None and y is not None:
            points[alpha] = Point(alpha, x, y)
    if not any(0 < alpha < 1 for alpha in points):
        return None
    return Curve(run.algorithm, tuple(points[alpha] for alpha in sorted(points)))


def mean_curve(
    arm: Arm, zero_shot: Arm | None = None, id_metric: str = ID, ood_metric: str = OOD
) -> Curve | None:
    """Average the curves of an arm's finished seeds, at the alphas that every one has."""
    starts = (None if zero_shot is None else zero_shot.run_of(run.seed) for run in arm.done)
    pairs = zip(arm.done, starts, strict=True)
    every = (run_curve(run, start, id_metric, ood_metric) for run, start in pairs)
    curves = [curve for curve in every if curve is not None]
    if not curves or len(curves) < len(arm.done):
        return None
    by_alpha = [{point.alpha: point for point in curve.points} for curve in curves]
    shared = sorted(set.intersection(*(set(points) for points in by_alpha)))
    means = [
        Point(
            alpha,
            mean([points[alpha].id for points in by_alpha]),
            mean([points[alpha].ood for points in by_alpha]),
        )
        for alpha in shared
    ]
    return Curve(arm.label, tuple(means))


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
