"""The WiSE-FT curve: the ID and OOD accuracies of weights interpolated to the zero-shot model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from carft_sweep.tracking.comparison.metrics import ID, OOD
from carft_sweep.tracking.comparison.runs import Arm, split_merge
from carft_sweep.tracking.comparison.statistics import ROUNDING, mean

WISE = "wise_ft"
Floats = NDArray[np.float64]
PAPER_ALPHA = 0.5
"""The alpha that WiSE-FT recommends without a choice (Wortsman et al., CVPR 2022, section 4)."""


class Point(NamedTuple):
    """One interpolated model; accuracies are fractions."""

    alpha: float
    id: float
    ood: float


@dataclass(frozen=True)
class Curve:
    """One arm's points by rising alpha: 0 is the zero-shot model, 1 the tuned one."""

    arm: Arm
    points: tuple[Point, ...]


def wise_alpha(label: str) -> float | None:
    """Return the alpha of a WiSE-FT model (0: zero-shot, 1: unmerged); None for another label."""
    name, alpha = split_merge(label)
    return alpha if name == WISE else None


def seed_curves(
    arm: Arm, zero_shot: Arm | None = None, id_metric: str = ID, ood_metric: str = OOD
) -> dict[int | None, Curve]:
    """Return, by seed, the curve of each finished run that was measured at alphas between 0 and 1.
    `id_metric` and `ood_metric` are the curve's axes. If alpha 1 was not requested, the run itself
    is that point, and the zero-shot model is alpha 0: by definition these are the same weights."""
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
            curves[run.seed] = Curve(arm, tuple(points))
    return curves


def seed_points(arm: Arm, id_metric: str, ood_metric: str) -> dict[int | None, Curve]:
    """Return, by seed, the single point of each finished run that is measured on both axes."""
    curves = {}
    for run in arm.done:
        x, y = run.value(id_metric, arm.merge), run.value(ood_metric, arm.merge)
        if x is not None and y is not None:
            curves[run.seed] = Curve(arm, (Point(1.0, x, y),))
    return curves


def mean_curve(curves: Sequence[Curve]) -> Curve | None:
    """Return the mean of curves of an arm's seeds at the alphas that all have; None without one."""
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
    return Curve(curves[0].arm, tuple(points))


def highest_on_chords(ids: Floats, oods: Floats, at: Floats) -> Floats:
    """Return the highest OOD accuracy [..., M] that chords of curves reach at ID accuracies. `ids`
    and `oods` [..., K] are points by rising alpha, `at` is [..., M]; NaN outside a curve."""
    if ids.shape[-1] == 1:
        return np.where(np.abs(at - ids) <= ROUNDING, oods, np.nan)
    chords, covers = _chords(ids, oods, at)
    return _highest(chords, covers)


def ood_bound(ids: Floats, oods: Floats, at: Floats) -> Floats:
    """Return an upper bound of the OOD accuracy [..., M] of curves at ID accuracies.

    `ids` and `oods` [..., K] are points by rising alpha, `at` is [..., M].

    Between two measured alphas the curve is unknown. Where it is concave, it lies above the chord
    of the two points and below the extended chords of the neighbouring pieces: the lower of these
    bounds it. Where the points show it convex, its own chord bounds it; so it does for a curve that
    turns back in ID, below the piece that it turned back from. NaN outside the curve's ID range,
    and where the highest piece has no neighbour that leads on, so that nothing bounds it.
    """
    return _bound(ids, oods, at, np.fmin, np.maximum)


def ood_floor(ids: Floats, oods: Floats, at: Floats) -> Floats:
    """Return a lower bound of the OOD accuracy [..., M] of curves at ID accuracies, with the rules
    of `ood_bound` reversed: a convex curve lies below its chords."""
    return _bound(ids, oods, at, np.fmax, np.minimum)


def _bound(ids: Floats, oods: Floats, at: Floats, nearer: np.ufunc, outer: np.ufunc) -> Floats:
    """Return a bound of curves: the `outer` of each chord and of the `nearer` of its neighbours'
    extended chords; np.maximum and np.fmin give the upper bound, np.minimum and np.fmax the
    lower."""
    if ids.shape[-1] == 1:
        return highest_on_chords(ids, oods, at)
    chords, covers = _chords(ids, oods, at)
    steps = _steps(ids)
    leads_on = (steps[..., :-1] * steps[..., 1:] > 0)[..., None]
    none = np.full((*chords.shape[:-2], 1, chords.shape[-1]), np.nan)
    # The line of piece k, extended to its neighbours, bounds those.
    extended = nearer(
        np.concatenate([none, np.where(leads_on, chords[..., :-1, :], np.nan)], axis=-2),
        np.concatenate([np.where(leads_on, chords[..., 1:, :], np.nan), none], axis=-2),
    )
    is_bounded = np.isfinite(extended)
    bounds = np.where(is_bounded, outer(chords, extended), chords)
    top = np.where(covers, chords, -np.inf).max(axis=-2, keepdims=True)
    open_ended = (covers & ~is_bounded & (chords >= top - ROUNDING)).any(axis=-2)
    return np.where(open_ended, np.nan, _highest(bounds, covers))


def _chords(ids: Floats, oods: Floats, at: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the OOD accuracy [..., K - 1, M] at each ID accuracy of `at` on the chord through each
    two neighbouring points (inf if vertical), and whether `at` lies between the two."""
    steps = _steps(ids)
    slopes = np.diff(oods, axis=-1) / np.where(steps == 0, np.nan, steps)
    x = at[..., None, :]
    lines = oods[..., :-1, None] + slopes[..., None] * (x - ids[..., :-1, None])
    low = np.minimum(ids[..., :-1], ids[..., 1:])[..., None]
    high = np.maximum(ids[..., :-1], ids[..., 1:])[..., None]
    covers = (x >= low - ROUNDING) & (x <= high + ROUNDING) & (steps != 0)[..., None]
    return np.where(steps[..., None] == 0, np.inf, lines), covers


def _steps(ids: Floats) -> Floats:
    """Return the differences [..., K - 1] of neighbouring ID accuracies; 0 where float rounding
    alone separates two, as of equal means over tasks: their line would be nearly upright."""
    steps = np.diff(ids, axis=-1)
    return np.where(np.abs(steps) <= ROUNDING, 0.0, steps)


def _highest(values: Floats, covers: NDArray[np.bool_]) -> Floats:
    highest = np.where(covers, values, -np.inf).max(axis=-2)
    return np.where(np.isfinite(highest), highest, np.nan)


PLACES = 32
"""Number of equally spaced ID accuracies at which two curves are compared."""


def curve_gain(ids: Floats, oods: Floats, other_ids: Floats, other_oods: Floats) -> Floats:
    """Return how far the chords of curves [..., K] lie above the `ood_bound` of others [..., L].
    The result is the mean over `PLACES` ID accuracies that both curves reach; NaN without such an
    accuracy, or where the other curve is bounded at none of them."""
    at = _common_places(ids, other_ids)
    return _mean(highest_on_chords(ids, oods, at) - ood_bound(other_ids, other_oods, at))


def curve_difference(ids: Floats, oods: Floats, other_ids: Floats, other_oods: Floats) -> Floats:
    """Return how far curves [..., K] lie above others [..., L], each drawn straight between its
    points; the mean as in `curve_gain`."""
    at = _common_places(ids, other_ids)
    lines = (highest_on_chords(*curve, at) for curve in ((ids, oods), (other_ids, other_oods)))
    return _mean(np.subtract(*lines))


def curve_sag(ids: Floats, oods: Floats, other_ids: Floats) -> Floats:
    """Return how far curves [..., K] may lie below their chords, mean over the ID accuracies that
    the curves `other_ids` reach too; NaN as in `curve_gain`. A single point has no chord: 0."""
    if ids.shape[-1] == 1:
        return np.zeros(ids.shape[:-1])
    at = _common_places(ids, other_ids)
    return _mean(highest_on_chords(ids, oods, at) - ood_floor(ids, oods, at))


def _common_places(ids: Floats, other_ids: Floats) -> Floats:
    """Return `PLACES` ID accuracies that both curves reach [..., M]; NaN where there are none."""
    low = np.maximum(ids.min(axis=-1), other_ids.min(axis=-1))
    high = np.minimum(ids.max(axis=-1), other_ids.max(axis=-1))
    is_point = min(ids.shape[-1], other_ids.shape[-1]) == 1
    has_range = low <= high if is_point else high - low > ROUNDING
    shares = (np.arange(PLACES) + 0.5) / PLACES
    at: Floats = low[..., None] + (high - low)[..., None] * shares
    return np.where(has_range[..., None], at, np.nan)


def _mean(values: Floats) -> Floats:
    """Return the mean of the finite values of the last axis; NaN without one."""
    count = np.isfinite(values).sum(axis=-1)
    total: Floats = np.nansum(values, axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
