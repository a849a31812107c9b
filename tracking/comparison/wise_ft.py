"""The WiSE-FT curve: what ID and OOD accuracy fine-tuning reaches by interpolating its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from carft_sweep.tracking.comparison.metrics import ID, OOD
from carft_sweep.tracking.comparison.runs import Arm, split_merge
from carft_sweep.tracking.comparison.statistics import mean

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


def wise_alpha(label: str) -> float | None:
    """Return the alpha of a WiSE-FT model: 0 is the zero-shot, 1 the unmerged one; else None."""
    name, alpha = split_merge(label)
    return alpha if name == WISE else None


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


def mean_curve(curves: Sequence[Curve]) -> Curve | None:
    """Average the curves of an arm's seeds at the alphas that all have; None without a curve."""
    if not curves:
        return None
    by_alpha = [{point.alpha: point for point in curve.points} for curve in curves]
    points = [
        Point(
            alpha,
            mean([points[alpha].id for points in by_alpha]),
            mean([points[alpha].ood for points in by_alpha]),
        )
        for alpha in sorted(set.intersection(*map(set, by_alpha)))
    ]
    return Curve(curves[0].label, tuple(points))


def ood_bound(curve: Curve, id_accuracy: float) -> float | None:
    """Bound the curve's OOD accuracy at this ID accuracy from above.

    Between two measured alphas the curve is unknown. It is bent upwards, so it lies above the chord
    of the two, and below the chords before and behind it when these are extended: the lower one
    bounds it. A curve that is measured to be bent downwards there is bounded by its own chord, and
    so is one that turns back in ID, below the piece that it turned back from. None outside the
    curve's ID range, and where no chord leads on, so that nothing bounds it.
    """
    pieces: list[tuple[float, float | None]] = []
    ends = (None, *curve.points, None)
    for before, one, two, after in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        if one is None or two is None:
            continue
        measured = [p.ood for p in (one, two) if abs(p.id - id_accuracy) <= _ROUNDING]
        if measured:
            pieces.append((max(measured), max(measured)))
        elif min(one.id, two.id) < id_accuracy < max(one.id, two.id):
            chord = _line(one, two, id_accuracy)
            extended = [
                _line(outer, inner, id_accuracy)
                for outer, inner, other in ((before, one, two), (after, two, one))
                if outer is not None and (inner.id - outer.id) * (other.id - inner.id) > 0
            ]
            pieces.append((chord, max(chord, min(extended)) if extended else None))
    if not pieces or max(pieces, key=lambda piece: piece[0])[1] is None:
        return None
    return max(chord if bound is None else bound for chord, bound in pieces)


def _line(one: Point, two: Point, id_accuracy: float) -> float:
    """Return the OOD accuracy at an ID accuracy on the line through two models."""
    return one.ood + (id_accuracy - one.id) / (two.id - one.id) * (two.ood - one.ood)


def dominating(curve: Curve, id_accuracy: float, ood_accuracy: float) -> Point | None:
    """Find the measured model with the highest OOD that is as good on both and better on one."""
    above = [
        p
        for p in curve.points
        if min(p.id - id_accuracy, p.ood - ood_accuracy) >= -_ROUNDING
        and max(p.id - id_accuracy, p.ood - ood_accuracy) > _ROUNDING
    ]
    return max(above, key=lambda point: point.ood, default=None)
