"""Curve against curve: whether a method with WiSE-FT beats the reference with WiSE-FT.

WiSE-FT costs nothing, so that a method is worth what its whole curve is. For each seed it is the
mean, over the ID accuracies that both curves reach, of the candidate's curve (chords between its
measured models) minus an upper bound of the reference's. Nobody chooses an alpha.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from carft_sweep.tracking.comparison.hits import Hits, KeptHits, leave_out
from carft_sweep.tracking.comparison.runs import Arm, RunRecord
from carft_sweep.tracking.comparison.spec import ALPHA, SEEDS_FOR_CLAIM, Endpoint
from carft_sweep.tracking.comparison.statistics import (
    ImageError,
    Interval,
    PairedTest,
    adjusted_by_holm,
    deciding_level,
    mean,
)
from carft_sweep.tracking.comparison.wise_ft import Curve, CurveGain, curve_gain, wise_alpha

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
    """By seed: those of the candidate and of the reference."""
    zero_shots: tuple[Arm | None, Arm | None]
    """Where each curve begins."""
    kept: KeptHits = field(compare=False, repr=False)

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Those with both curves."""
        return tuple(self.curves)

    @property
    def is_point(self) -> bool:
        """Whether the candidate is compared by its unmerged model alone."""
        return any(len(one.points) == 1 for one, _ in self.curves.values())

    @cached_property
    def common_range(self) -> Interval | None:
        """The ID accuracies that both curves reach, mean over seeds."""
        ranges = []
        for pair in self.curves.values():
            ids = [[point.id for point in curve.points] for curve in pair]
            ranges.append((max(map(min, ids)), min(map(max, ids))))
        if not ranges or any(low > high for low, high in ranges):
            return None
        return Interval(*(mean(ends) for ends in zip(*ranges, strict=True)))

    @cached_property
    def _gains(self) -> tuple[CurveGain, CurveGain]:
        """By seed: the candidate above the reference, and the reference above the candidate."""
        pairs = [tuple(map(_axes, pair)) for pair in self.curves.values()]
        both = [
            [curve_gain(*ours, *theirs) for ours, theirs in pairs],
            [curve_gain(*theirs, *ours) for ours, theirs in pairs],
        ]
        one, two = (
            CurveGain(*(np.array(values) for values in zip(*of, strict=True))) for of in both
        )
        return one, two

    @cached_property
    def gain(self) -> PairedTest | None:
        """The candidate's chords minus the most that the reference may have.

        None where one of the seeds has no common range.
        """
        return self._test(0)

    @cached_property
    def loss(self) -> PairedTest | None:
        """The reference's chords minus the most that the candidate may have; None likewise."""
        return self._test(1)

    @property
    def chords(self) -> float | None:
        """Chords minus chords, mean over seeds: a description that nothing is tested by."""
        values = self._gains[0].above_chords if self.curves else np.array([np.nan])
        return float(values.mean()) if np.isfinite(values).all() else None

    def _test(self, side: int) -> PairedTest | None:
        if not self.curves:
            return None
        values = self._gains[side].above_bound
        if not np.isfinite(values).all():
            return None
        runs = (*self.candidate.done, *self.reference.done)
        step = max((run.image_step(self.endpoint.ood) for run in runs), default=0.0)
        errors = self._image_errors
        return PairedTest(tuple(map(float, values)), step, errors and errors[side])

    @cached_property
    def _image_errors(self) -> tuple[ImageError, ImageError] | None:
        """Those of gain and loss, by leaving out groups of units in turn: Wolter, Introduction to
        Variance Estimation (2007), chapter 4. None where predictions are not kept."""
        sides: list[list[list[Hits]]] = []
        for side, arm in enumerate((self.candidate, self.reference)):
            runs = {run.seed: run for run in arm.done}
            of_seeds = []
            for seed, pair in self.curves.items():
                models = [
                    self._hits(runs[seed], point.alpha, self.zero_shots[side])
                    for point in pair[side].points
                ]
                present = [hits for hits in models if hits is not None]
                if len(present) < len(models):
                    return None
                of_seeds.append(present)
            sides.append(of_seeds)
        flat = [hits for of_seeds in sides for models in of_seeds for hits in models]
        left_out = leave_out(flat, self.endpoint.id_metric, self.endpoint.ood)
        if left_out is None:
            return None
        accuracies, units, images = iter(left_out[0]), *left_out[1:]
        curves = [[[next(accuracies) for _ in models] for models in of_seeds] for of_seeds in sides]
        totals = [np.zeros(()), np.zeros(())]
        for ours, theirs in zip(*curves, strict=True):
            one, two = (
                (
                    np.stack([model.id for model in models], axis=-1),
                    np.stack([model.ood for model in models], axis=-1),
                )
                for models in (ours, theirs)
            )
            totals[0] = totals[0] + curve_gain(*one, *two).above_bound
            totals[1] = totals[1] + curve_gain(*two, *one).above_bound
        errors = []
        for total in totals:
            values = total[np.isfinite(total)] / len(self.curves)
            if len(values) < 2:
                return None
            groups = len(values)
            variance = (groups - 1) / groups * float(((values - values.mean()) ** 2).sum())
            errors.append(ImageError(variance, groups - 1, units, images))
        return errors[0], errors[1]

    def _hits(self, run: RunRecord, alpha: float, zero_shot: Arm | None) -> Hits | None:
        """Return what is kept of the model at an alpha of a run's curve."""
        if alpha == 1:
            return self.kept.of(run, None)
        for label in run.merges:
            if wise_alpha(label) == alpha:
                return self.kept.of(run, label)
        own = [] if zero_shot is None else zero_shot.done
        same = [it for it in own if it.seed == run.seed] or (
            list(own) if zero_shot is not None and not zero_shot.has_seeds else []
        )
        return self.kept.of(same[0], None) if same else None


def _axes(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([p.id for p in curve.points]), np.array([p.ood for p in curve.points])


@dataclass(frozen=True)
class CurveVerdict:
    """The curve of one candidate against that of the reference."""

    pair: CurvePair
    outcome: CurveOutcome
    p_better: float | None
    """That the gain is above 0, doubled so that 0.05 decides; Holm-adjusted."""
    p_worse: float | None
    """That the loss is above 0, likewise."""
    level: float
    """That of the interval which decides."""
    compared: int
    seeds: tuple[int, ...]
    """Required on both sides."""
    tried: int
    """The most settings that one side was chosen among on these very seeds."""

    @property
    def interval(self) -> Interval | None:
        """That of the gain which decides."""
        return None if self.pair.gain is None else self.pair.gain.interval(self.level)

    @property
    def most(self) -> float | None:
        """The upper end of what the true gain may be, from the loss."""
        of_loss = None if self.pair.loss is None else self.pair.loss.interval(self.level)
        return None if of_loss is None else -of_loss.low

    @property
    def state(self) -> CurveState:
        """What the sentence begins with. NO GAIN: one of the margin's size is excluded."""
        match self.outcome:
            case "better_curve":
                return "BETTER CURVE"
            case "worse_curve":
                return "WORSE CURVE"
            case "no_difference":
                no_gain = self.most is not None and self.most < self.pair.endpoint.ood_margin
                return "NO GAIN" if no_gain else "UNDECIDED"
            case _:
                return "UNDECIDED"


class _PValues(NamedTuple):
    better: float | None
    worse: float | None


def judge_curves(
    pairs: Sequence[CurvePair], seeds: Sequence[int], tried: Mapping[str, int]
) -> tuple[CurveVerdict, ...]:
    """Judge each candidate's curve against the reference's, Holm-adjusted over all of them."""
    ps = [_PValues(_doubled(pair.gain), _doubled(pair.loss)) for pair in pairs]
    better, worse = (adjusted_by_holm(of) for of in zip(*ps, strict=True)) if ps else ((), ())
    verdicts = []
    for pair, raw, p_better, p_worse in zip(pairs, ps, better, worse, strict=True):
        outcome = _outcome(pair, p_better, p_worse, seeds)
        decided = (raw.worse, p_worse) if outcome == "worse_curve" else (raw.better, p_better)
        verdicts.append(
            CurveVerdict(
                pair,
                outcome,
                p_better,
                p_worse,
                deciding_level(*decided, len(pairs), ALPHA),
                len(pairs),
                tuple(seeds),
                max(tried.get(arm.algorithm, 1) for arm in (pair.candidate, pair.reference)),
            )
        )
    return tuple(verdicts)


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
