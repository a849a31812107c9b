"""Curve against curve: whether a method with WiSE-FT beats the reference with WiSE-FT.

WiSE-FT costs nothing, so that a method is judged by its whole curve. Each seed's gain is the mean,
over the ID accuracies that both curves reach, of a lower bound of the candidate's curve minus an
upper bound of the reference's. Nobody chooses an alpha.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from carft_sweep.tracking.comparison.hits import Hits, KeptHits, leave_out
from carft_sweep.tracking.comparison.power import Power
from carft_sweep.tracking.comparison.runs import Arm, RunRecord, largest_image_step
from carft_sweep.tracking.comparison.spec import SEEDS_FOR_CLAIM, Endpoint
from carft_sweep.tracking.comparison.statistics import (
    ALPHA,
    ImageError,
    Interval,
    PairedTest,
    deciding_level,
    holm,
    mean,
)
from carft_sweep.tracking.comparison.verdict import Judgement
from carft_sweep.tracking.comparison.wise_ft_curve import (
    Curve,
    Floats,
    Point,
    curve_difference,
    curve_gain,
    curve_sag,
    wise_alpha,
)

CurveOutcome = Literal[
    "better_curve",
    "worse_curve",
    "no_difference",
    "no_range",
    "incomplete",
    "too_few_seeds",
    "no_spread",
]
CurveState = Literal["BETTER CURVE", "WORSE CURVE", "NO GAIN", "UNDECIDED"]


@dataclass(frozen=True)
class CurvePair:
    """The curves of a candidate and its reference over their common seeds."""

    candidate: Arm
    """Unmerged; where none of its WiSE-FT models was measured, its curve is one point."""
    reference: Arm
    endpoint: Endpoint
    curves: Mapping[int | None, tuple[Curve, Curve]]
    """By seed: the candidate's curve and the reference's."""
    zero_shots: tuple[Arm | None, Arm | None]
    """Zero-shot arms where the two curves begin (alpha 0)."""
    kept: KeptHits = field(compare=False, repr=False)

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Seeds on which both arms have a curve."""
        return tuple(self.curves)

    @property
    def is_point(self) -> bool:
        """Whether the candidate is compared by its unmerged model alone."""
        return any(len(one.points) == 1 for one, _ in self.curves.values())

    @cached_property
    def common_range(self) -> Interval | None:
        """The range of ID accuracies that both curves reach, mean over seeds; None if a seed has
        none."""
        ranges = []
        for pair in self.curves.values():
            ids = [[point.id for point in curve.points] for curve in pair]
            ranges.append((max(map(min, ids)), min(map(max, ids))))
        if not ranges or any(low > high for low, high in ranges):
            return None
        return Interval(*(mean(ends) for ends in zip(*ranges, strict=True)))

    @cached_property
    def _sides(self) -> tuple[_Side, _Side]:
        """Curves of the candidate and of the reference, each at the alphas that all seeds have."""
        one, two = (_side(curves) for curves in zip(*self.curves.values(), strict=True))
        return one, two

    @cached_property
    def gain(self) -> PairedTest | None:
        """Test by seed of the candidate's lower bound minus the reference's upper bound, in OOD
        accuracy at equal ID accuracy. None where a seed has no common range of ID accuracies."""
        return self._test(0)

    @cached_property
    def loss(self) -> PairedTest | None:
        """Test of the reference's lower bound minus the candidate's upper bound, like `gain`."""
        return self._test(1)

    @property
    def difference(self) -> float | None:
        """The estimated gain, of curves as a chart draws them; None without both tests."""
        if self.gain is None or self.loss is None:
            return None
        (_, *one), (_, *two) = self._sides
        return float(curve_difference(*one, *two).mean())

    @property
    def slack(self) -> float:
        """How far gain and loss lie below the true differences: half the gap between bounds."""
        if self.gain is None or self.loss is None:
            return 0.0
        return max(0.0, -(self.gain.mean + self.loss.mean) / 2)

    @property
    def p_better(self) -> float | None:
        """The p of the claim that the gain is above 0, one-sided at 2.5 % and doubled, so that 0.05
        decides. None where nothing can be tested."""
        return _doubled(self.gain)

    @property
    def p_worse(self) -> float | None:
        """The p of the claim that the loss is above 0, like `p_better`."""
        return _doubled(self.loss)

    def _test(self, side: int) -> PairedTest | None:
        if not self.curves:
            return None
        values = _gains(self._sides[side], self._sides[1 - side])
        if not np.isfinite(values).all():
            return None
        step = largest_image_step((self.candidate, self.reference), self.endpoint.ood)
        errors = self._image_errors
        return PairedTest(tuple(map(float, values)), step, errors and errors[side])

    @cached_property
    def _image_errors(self) -> tuple[ImageError, ImageError] | None:
        """Return the errors of gain and loss over images, by leaving out groups of units: Wolter,
        Introduction to Variance Estimation (2007), chapter 4. They are what more seeds do not
        reduce (`ImageError.floor`). None without predictions."""
        models = [
            self._hits(run, alpha, zero_shot)
            for arm, zero_shot, side in zip(
                (self.candidate, self.reference), self.zero_shots, self._sides, strict=True
            )
            for run in arm.done
            if run.seed in self.curves
            for alpha in side.alphas
        ]
        left_out = leave_out(models, self.endpoint.id_metric, self.endpoint.ood)
        if left_out is None:
            return None
        accuracies, units, images = left_out
        sides, begin = [], 0
        for alphas, ids, _ in self._sides:
            own = accuracies[begin : begin + ids.size]
            begin += ids.size
            axes = (np.stack(values, axis=-1) for values in zip(*own, strict=True))
            sides.append(_Side(alphas, *(axis.reshape(-1, *ids.shape) for axis in axes)))
        errors = []
        for one, two in (sides, sides[::-1]):
            gains = _gains(one, two)
            values = gains[np.isfinite(gains).all(axis=-1)]
            if len(values) < 2:
                return None
            deviations = values - values.mean(axis=0)
            # Groups that leave no common range count as if they varied like the others.
            scale = len(gains) - 1
            error = ImageError.floor(
                scale * float((deviations.mean(axis=-1) ** 2).mean()),
                scale * float((deviations**2).mean()),
                len(self.seeds),
                freedom=len(values) - 1,
                units=units,
                images=images,
            )
            errors.append(error)
        return errors[0], errors[1]

    def _hits(self, run: RunRecord, alpha: float, zero_shot: Arm | None) -> Hits | None:
        """Return the hits of the model at `alpha` of a run's curve, of `zero_shot` where the run
        has none; None without predictions."""
        if alpha == 1:
            return self.kept.of(run, None)
        for label in run.merges:
            if wise_alpha(label) == alpha:
                return self.kept.of(run, label)
        start = None if zero_shot is None else self.kept.by_seed(zero_shot, [run.seed])
        return start[0] if start else None


_AXES = ("id", "ood")


class _Side(NamedTuple):
    """The curves of one of the two arms that are compared."""

    alphas: tuple[float, ...]
    ids: Floats
    """[..., S, K] ID accuracy by seed and alpha."""
    oods: Floats


def _side(curves: Sequence[Curve]) -> _Side:
    """Return the points of curves at the alphas that all curves have; NaN for missing points."""
    by_alpha = [{point.alpha: point for point in curve.points} for curve in curves]
    alphas = tuple(sorted(set.intersection(*map(set, by_alpha)))) or (math.nan,)
    nowhere = Point(math.nan, math.nan, math.nan)
    points = [[own.get(alpha, nowhere) for alpha in alphas] for own in by_alpha]
    ids, oods = (np.array([[getattr(p, axis) for p in own] for own in points]) for axis in _AXES)
    return _Side(alphas, ids, oods)


def _gains(one: _Side, two: _Side) -> Floats:
    """Return for each seed [..., S] a lower bound of how far curve `one` lies above curve `two`,
    mean over their common ID range. How far a curve may lie below its chords (its sag) is estimated
    by the curve's mean over seeds, since a single seed's curve is bent by chance."""
    sag = curve_sag(one.ids.mean(axis=-2), one.oods.mean(axis=-2), two.ids.mean(axis=-2))
    return curve_gain(one.ids, one.oods, two.ids, two.oods) - sag[..., None]


@dataclass(frozen=True, kw_only=True)
class CurveVerdict(Judgement):
    """The curve of one candidate against that of the reference."""

    pair: CurvePair
    outcome: CurveOutcome
    gain_level: float
    """Confidence level of the interval of `pair.gain` that decides."""
    loss_level: float
    """Confidence level of the interval of `pair.loss` that decides."""

    @property
    def level(self) -> float:
        """The confidence level of the interval's end that decides the claim."""
        return self.loss_level if self.outcome == "worse_curve" else self.gain_level

    @property
    def interval(self) -> Interval | None:
        """Interval of the true gain: its low end by the test of the gain at `gain_level`, its high
        end by that of the loss at `loss_level`. None without both."""
        gain, loss = self.pair.gain, self.pair.loss
        of_gain = None if gain is None else gain.interval(self.gain_level)
        of_loss = None if loss is None else loss.interval(self.loss_level)
        return of_gain and of_loss and Interval(of_gain.low, -of_loss.low)

    @property
    def power(self) -> Power | None:
        """Power of the test of the gain; None without a test."""
        return Power.of(self.pair.gain, self.gain_level, slack=self.pair.slack)

    @property
    def state(self) -> CurveState:
        """The state that the sentence begins with. NO GAIN excludes a gain of the margin's size."""
        if self.outcome in ("better_curve", "worse_curve"):
            return "BETTER CURVE" if self.outcome == "better_curve" else "WORSE CURVE"
        interval, margin = self.interval, self.pair.endpoint.ood_margin
        is_excluded = interval is not None and interval.high < margin
        return "NO GAIN" if self.outcome == "no_difference" and is_excluded else "UNDECIDED"


def judge_curves(
    pairs: Sequence[CurvePair], seeds: Sequence[int], tried: Mapping[str, int]
) -> tuple[CurveVerdict, ...]:
    """Return the verdict on each pair, Holm-adjusted over all pairs. A pair that lacks one of
    `seeds` is incomplete; `tried` is the number of settings that each algorithm was selected
    among."""
    better = holm([pair.p_better for pair in pairs])
    worse = holm([pair.p_worse for pair in pairs])
    return tuple(
        CurveVerdict(
            pair=pair,
            outcome=_outcome(pair, p_better, p_worse, seeds),
            p_better=p_better,
            p_worse=p_worse,
            gain_level=deciding_level(pair.p_better, p_better, len(pairs)),
            loss_level=deciding_level(pair.p_worse, p_worse, len(pairs)),
            compared=len(pairs),
            seeds=tuple(seeds),
            tried=max(tried.get(arm.algorithm, 1) for arm in (pair.candidate, pair.reference)),
        )
        for pair, p_better, p_worse in zip(pairs, better, worse, strict=True)
    )


def _doubled(test: PairedTest | None) -> float | None:
    p = None if test is None else test.p_above(0.0)
    return None if p is None else min(1.0, 2 * p)


def _outcome(
    pair: CurvePair, p_better: float | None, p_worse: float | None, seeds: Sequence[int]
) -> CurveOutcome:
    if not {*seeds} <= {*pair.seeds}:
        return "incomplete"
    if pair.gain is None:
        return "no_range"
    if len(pair.seeds) < SEEDS_FOR_CLAIM:
        return "too_few_seeds"
    if p_better is None:
        return "no_spread"
    if p_better < ALPHA:
        return "better_curve"
    if p_worse is not None and p_worse < ALPHA:
        return "worse_curve"
    return "no_difference"
