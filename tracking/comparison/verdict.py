"""What the numbers allow to be said of two arms: tests over common seeds, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from carft_sweep.tracking.comparison.metrics import OOD, TOP1
from carft_sweep.tracking.comparison.runs import Arm
from carft_sweep.tracking.comparison.spec import ALPHA, FEWEST_SEEDS, Endpoint
from carft_sweep.tracking.comparison.statistics import (
    Estimate,
    Interval,
    PairedTest,
    estimate,
    holm,
    mean,
)
from carft_sweep.tracking.comparison.wise_ft import Curve, Point, dominating, mean_curve, ood_bound

GAIN = "gain/ood/top1"
Outcome = Literal[
    "better",
    "trade_off",
    "worse",
    "tie",
    "no_difference",
    "no_spread",
    "incomplete",
    "too_few_seeds",
    "no_shifts",
    "no_pairs",
    "not_measured",
]
State = Literal["BETTER", "MORE ROBUST", "LESS ROBUST", "WORSE", "NO GAIN", "UNDECIDED"]
Beyond = Literal["above", "below", "between", "above or below"]


@dataclass(frozen=True)
class Pair:
    """A candidate and its reference over their common seeds, tested once in each metric."""

    candidate: Arm
    reference: Arm
    endpoint: Endpoint
    _tests: dict[str, PairedTest | None] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def seeds(self) -> tuple[int | None, ...]:
        """Those in which both have every endpoint that both are measured in."""
        metrics = (self.endpoint.ood, self.endpoint.id_metric)
        pairs = [(one, two) for one, two in map(self._values, metrics) if one and two]
        common = (s for s in self._seeds if all(s in side for pair in pairs for side in pair))
        return tuple(common) if pairs else ()

    def test(self, metric: str) -> PairedTest | None:
        """Test candidate minus reference over the common seeds; None where a side has no value."""
        if metric not in self._tests:
            one, two = self._values(metric)
            differences = tuple(one[s] - two[s] for s in self.seeds if s in one and s in two)
            runs = (*self.candidate.done, *self.reference.done)
            step = max((run.image_step(metric) for run in runs), default=0.0)
            self._tests[metric] = PairedTest(differences, step) if differences else None
        return self._tests[metric]

    @property
    def _seeds(self) -> list[int | None]:
        """Those of the candidate, or of the reference where no seed changes the candidate."""
        side = self.candidate if self.candidate.has_seeds else self.reference
        return [run.seed for run in side.done]

    def _values(self, metric: str) -> tuple[dict[int | None, float], dict[int | None, float]]:
        """Read both by seed; an arm that no seed changes stands against each seed of the other."""
        seeds = self._seeds
        return self.candidate.values(metric, seeds), self.reference.values(metric, seeds)

    @property
    def ood(self) -> PairedTest | None:
        """The test of the OOD mean."""
        return self.test(self.endpoint.ood)

    @property
    def id(self) -> PairedTest | None:
        """The test of ID."""
        return self.test(self.endpoint.id_metric)

    @property
    def tested(self) -> PairedTest | None:
        """The test of the endpoint: of the shifts, or of ID."""
        return self.ood if self.endpoint.has_shifts else self.id

    @property
    def p_different(self) -> float | None:
        """Two-sided p of the endpoint's difference; None where nothing can be tested."""
        return None if self.tested is None else self.tested.p

    @property
    def p_better(self) -> float | None:
        """Return p of the claim "better", at one-sided 2.5 %: doubled, so that 0.05 decides.

        The claim is that the endpoint gains and that ID loses less than the margin. Its p is the
        larger of the two: Berger, Multiparameter hypothesis testing and acceptance sampling,
        Technometrics 24 (1982). None where one of the two cannot be tested.
        """
        endpoint = self.endpoint
        ps = [None if self.tested is None else self.tested.p_above(0.0)]
        if endpoint.metric != endpoint.id_metric:
            ps.append(None if self.id is None else self.id.p_above(-endpoint.id_margin))
        return None if None in ps else min(1.0, 2 * max(p for p in ps if p is not None))

    @property
    def is_tie(self) -> bool:
        """Whether OOD and ID, as far as they were measured, are equal in every common seed."""
        tests = [test for test in (self.ood, self.id) if test is not None]
        return bool(tests) and all(test.is_tie for test in tests)


@dataclass(frozen=True)
class Verdict:
    """One candidate against the reference."""

    pair: Pair
    outcome: Outcome
    p_different: float | None
    """Of the endpoint's difference, Holm-adjusted over all candidates of the comparison."""
    p_better: float | None
    """Of the claim "better", adjusted likewise."""
    compared: int
    """How many candidates the adjustment is over."""
    seeds: tuple[int, ...]
    """Required on both sides."""
    tried: int
    """The most settings that one side was chosen among on these very seeds."""
    gain: Estimate | None
    """OOD mean minus zero-shot's, by seed."""
    above_curve: Estimate | None
    """OOD minus the upper bound of the reference's WiSE-FT curve at equal ID, by common seed."""
    beyond: Beyond | None
    """Where the ID accuracies lie at which the curve has no bound."""
    dominated_by: Point | None
    """The model on the reference's curve that is as good on both and better on one, if any."""
    merged: Mapping[str, Pair] = field(default_factory=dict)
    """By merge: the pair with the merge on both, at the same label (`wise_ft@0.5`)."""
    ci95_images: Mapping[str, Interval] = field(default_factory=dict)
    """By metric: bootstrap over images of the difference, the weights held fixed."""

    @property
    def state(self) -> State:
        """What the sentence begins with. NO GAIN: one of the margin's size is excluded."""
        match self.outcome:
            case "better":
                return "BETTER"
            case "trade_off":
                return "MORE ROBUST"
            case "worse":
                return "LESS ROBUST" if self.pair.endpoint.has_shifts else "WORSE"
            case "tie":
                return "NO GAIN"
            case "no_difference":
                ci95 = None if self.pair.tested is None else self.pair.tested.ci95
                no_gain = ci95 is not None and ci95.high < self.pair.endpoint.id_margin
                return "NO GAIN" if no_gain else "UNDECIDED"
            case _:
                return "UNDECIDED"

    @property
    def gains_over_curve(self) -> bool:
        """Whether it gives what the reference with WiSE-FT is shown not to give.

        Not where the distances do not spread over seeds, as nothing is tested then.
        """
        above = self.above_curve
        if above is None or above.ci95 is None or self.dominated_by is not None:
            return False
        claims = self.outcome not in ("incomplete", "too_few_seeds")
        return claims and 0 < above.ci95.low < above.ci95.high


def judge(
    candidates: Sequence[Arm],
    reference: Arm,
    endpoint: Endpoint,
    *,
    seeds: Sequence[int] = (),
    tried: Mapping[str, int] | None = None,
    zero_shots: Sequence[Arm] = (),
    merges: Mapping[str, Mapping[str, str]] | None = None,
    curves: Mapping[int | None, Curve] | None = None,
) -> tuple[Verdict, ...]:
    """Judge every candidate against the reference, Holm-adjusted over all of them.

    A candidate that cannot be tested counts: which will be compared is known before which can be.

    Args:
        candidates: The arm that stands for each algorithm.
        reference: What they are compared with.
        endpoint: What is tested, and the margin of ID.
        seeds: Of a complete arm; where one is lacking on a side, nothing is claimed.
        tried: By algorithm, the settings that its arm was chosen among on the seeds of its runs.
        zero_shots: Where the gain over zero-shot begins.
        merges: By the label of an unmerged candidate, the label at which each merge is compared.
        curves: The WiSE-FT curves of the reference, by seed.
    """
    pairs = [Pair(candidate, reference, endpoint) for candidate in candidates]
    different = _adjusted([pair.p_different for pair in pairs])
    better = _adjusted([pair.p_better for pair in pairs])
    verdicts = []
    for pair, p_different, p_better in zip(pairs, different, better, strict=True):
        verdicts.append(
            Verdict(
                pair,
                _outcome(pair, p_different, p_better, seeds),
                p_different,
                p_better,
                len(pairs),
                tuple(seeds),
                max((tried or {}).get(arm.algorithm, 1) for arm in (pair.candidate, reference)),
                gain_over_zero_shot(pair.candidate, zero_shots, endpoint.ood),
                *above_curve(pair.candidate, curves or {}, endpoint, pair.seeds),
                merged={
                    merge: Pair(pair.candidate.merged(label), reference.merged(label), endpoint)
                    for merge, label in (merges or {}).get(pair.candidate.label, {}).items()
                },
            )
        )
    return tuple(verdicts)


def zero_shot_of(arm: Arm, zero_shots: Sequence[Arm]) -> Arm | None:
    """Find the zero-shot arm, with a finished run, under this arm's own prompts and data."""
    for zero_shot in zero_shots:
        shared = {key: zero_shot.params[key] for key in zero_shot.params if key in arm.params}
        if zero_shot.done and all(arm.params[key] == value for key, value in shared.items()):
            return zero_shot
    return None


def gain_over_zero_shot(
    arm: Arm, zero_shots: Sequence[Arm], ood_metric: str = OOD
) -> Estimate | None:
    """Subtract zero-shot's OOD mean by seed: as the run measured it, else from the zero-shot arm.

    Runs measure it of top-1 alone.
    """
    seeds = [run.seed for run in arm.done]
    measured = arm.values(GAIN) if ood_metric == OOD else {}
    if measured and len(measured) == len(seeds):
        return estimate([*measured.values()])
    base = zero_shot_of(arm, zero_shots)
    starts = {} if base is None else base.values(ood_metric, seeds)
    if not seeds or not all(seed in starts for seed in seeds):
        return None
    values = arm.values(ood_metric)
    return estimate([values[s] - starts[s] if s in values else None for s in seeds])


def _adjusted(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust by Holm's rule over all; what cannot be tested counts as p = 1 and stays None."""
    adjusted = holm([1.0 if p is None else p for p in ps])
    return [None if p is None else q for p, q in zip(ps, adjusted, strict=True)]


def _outcome(
    pair: Pair, p_different: float | None, p_better: float | None, seeds: Sequence[int]
) -> Outcome:
    endpoint = pair.endpoint
    sides = (pair.candidate, pair.reference)
    if endpoint.by != TOP1 and any(s.done and not s.values(endpoint.metric) for s in sides):
        return "not_measured"
    if not pair.seeds:
        return "no_pairs"
    if any(side.has_seeds for side in sides) and not {*seeds} <= {*pair.seeds}:
        return "incomplete"
    if len(pair.seeds) < FEWEST_SEEDS:
        return "too_few_seeds"
    if pair.tested is None:
        return "no_shifts"
    if pair.is_tie:
        return "tie"
    if p_different is None:
        return "no_spread"
    if p_better is not None and p_better < ALPHA:
        return "better"
    if p_different < ALPHA:
        return "worse" if pair.tested.mean < 0 else "trade_off"
    return "no_difference"


def above_curve(
    arm: Arm,
    curves: Mapping[int | None, Curve],
    endpoint: Endpoint,
    seeds: Sequence[int | None],
) -> tuple[Estimate | None, Beyond | None, Point | None]:
    """Subtract the upper bound of each seed's curve at equal ID from the arm's OOD accuracy.

    Return the distances, where the curve has no bound, and the point of the mean curve that is at
    least as good on both and better on one. Nothing where the arm or the curve lacks a seed.
    """
    xs, ys = (arm.values(metric) for metric in (endpoint.id_metric, endpoint.ood))
    if not seeds or not all(s in side for s in seeds for side in (curves, xs, ys)):
        return None, None, None
    bounds = {seed: ood_bound(curves[seed], xs[seed]) for seed in seeds}
    above = estimate([None if bound is None else ys[s] - bound for s, bound in bounds.items()])
    sides = {_side(curves[s], xs[s]) for s, bound in bounds.items() if bound is None}
    beyond = "above or below" if len(sides) > 1 else next(iter(sides), None)
    curve = mean_curve([curves[seed] for seed in seeds])
    x, y = (mean([side[seed] for seed in seeds]) for side in (xs, ys))
    return above, beyond, None if curve is None else dominating(curve, x, y)


def _side(curve: Curve, id_accuracy: float) -> Beyond:
    """Say where a curve is that does not bound what is at this ID accuracy."""
    ids = [point.id for point in curve.points]
    if min(ids) <= id_accuracy <= max(ids):
        return "between"
    return "above" if id_accuracy > max(ids) else "below"
