"""What the numbers allow to be said of two arms: tests over common seeds, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from tracking.comparison.metrics import OOD, TOP1
from tracking.comparison.runs import Arm
from tracking.comparison.spec import ALPHA, FEWEST_SEEDS, Endpoint
from tracking.comparison.statistics import Estimate, Interval, PairedTest, estimate, holm
from tracking.comparison.wise_ft import Point, dominating, mean_curve, ood_at, run_curve

GAIN = "gain/ood/top1"
Outcome = Literal[
    "better",
    "trade_off",
    "worse",
    "tie",
    "no_difference",
    "too_few_seeds",
    "no_shifts",
    "no_pairs",
    "not_measured",
]
Beyond = Literal["above", "below", "above or below"]


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
        seeds = [run.seed for run in self.candidate.done]
        if not self.candidate.has_seeds:
            seeds = [run.seed for run in self.reference.done]
        common = (seed for seed in seeds if all(seed in side for pair in pairs for side in pair))
        return tuple(common) if pairs else ()

    def test(self, metric: str) -> PairedTest | None:
        """Test candidate minus reference over the common seeds; None where a side has no value."""
        if metric not in self._tests:
            candidate, reference = self._values(metric)
            pairs = [
                (candidate[s], reference[s])
                for s in self.seeds
                if s in candidate and s in reference
            ]
            differences = tuple(one - two for one, two in pairs)
            self._tests[metric] = PairedTest(differences) if differences else None
        return self._tests[metric]

    def _values(self, metric: str) -> tuple[dict[int | None, float], dict[int | None, float]]:
        """By seed. An arm that no seed changes stands against each seed of the other."""
        candidate, reference = self.candidate.by_seed(metric), self.reference.by_seed(metric)
        if reference and not self.reference.has_seeds:
            reference = dict.fromkeys(candidate, next(iter(reference.values())))
        elif candidate and not self.candidate.has_seeds:
            candidate = dict.fromkeys(reference, next(iter(candidate.values())))
        return candidate, reference

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
    def is_tie(self) -> bool:
        """Whether OOD and ID, as far as they were measured, are equal in every common seed."""
        tests = [test for test in (self.ood, self.id) if test is not None]
        return bool(tests) and all(test.is_tie for test in tests)


@dataclass(frozen=True)
class Verdict:
    """One candidate against the reference."""

    pair: Pair
    p_holm: float | None
    """Of the endpoint's difference, over all candidates of the comparison."""
    outcome: Outcome
    gain: Estimate | None
    """OOD mean minus zero-shot's, by seed."""
    above_curve: Estimate | None
    """OOD minus the reference's WiSE-FT curve at equal ID, by seed; None outside its ID range."""
    beyond: Beyond | None
    """Where the ID accuracies lie that the curve does not reach."""
    above_mean_curve: float | None
    """The same of the means over seeds; None where they lie outside the mean curve's ID range."""
    dominated_by: Point | None
    """The model on the reference's curve that is as good on both and better on one, if any."""
    merged: Mapping[str, Pair] = field(default_factory=dict)
    """By merge: the pair with the merge on both, each at its own selected label."""
    ci95_images: Mapping[str, Interval] = field(default_factory=dict)
    """By metric: bootstrap over images of the difference, the weights held fixed."""

    @property
    def gains_over_curve(self) -> bool:
        """Whether it gives what the reference with WiSE-FT is shown not to give."""
        above = self.above_curve
        if above is None or above.ci95 is None or self.dominated_by is not None:
            return False
        return above.ci95.low > 0


def judge(
    candidates: Sequence[Arm],
    reference: Arm,
    endpoint: Endpoint,
    *,
    zero_shots: Sequence[Arm] = (),
    merges: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[Verdict, ...]:
    """Judge every candidate against the reference, Holm-adjusted over those that can be tested.

    `merges` gives, by the label of an unmerged arm, the label selected for each merge.
    """
    pairs = [Pair(candidate, reference, endpoint) for candidate in candidates]
    tested = [pair.tested for pair in pairs]
    raw = [None if test is None else test.p for test in tested]
    adjusted = iter(holm([p for p in raw if p is not None]))
    by_pair = [None if p is None else next(adjusted) for p in raw]
    zero_shot = zero_shot_of(reference, zero_shots)
    labels = merges or {}
    own = labels.get(reference.label, {})
    return tuple(
        Verdict(
            pair,
            p_holm,
            _outcome(pair, p_holm),
            gain_over_zero_shot(pair.candidate, zero_shots, endpoint.ood),
            *_above_curve(pair, zero_shot),
            *_against_mean_curve(pair, zero_shot),
            merged={
                merge: Pair(pair.candidate.merged(label), reference.merged(own[merge]), endpoint)
                for merge, label in labels.get(pair.candidate.label, {}).items()
                if merge in own
            },
        )
        for pair, p_holm in zip(pairs, by_pair, strict=True)
    )


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
    """OOD mean minus zero-shot's by seed: as the run measured it, else from the zero-shot arm.

    Runs measure it of top-1 alone.
    """
    measured = arm.values(GAIN) if ood_metric == OOD else ()
    if measured and None not in measured:
        return estimate(measured)
    base = zero_shot_of(arm, zero_shots)
    if base is None or not arm.done:
        return None
    starts = [run.value(ood_metric) if (run := base.run_of(own.seed)) else None for own in arm.done]
    if None in starts:
        return None
    pairs = zip(arm.values(ood_metric), starts, strict=True)
    return estimate([None if one is None or two is None else one - two for one, two in pairs])


def _outcome(pair: Pair, p_holm: float | None) -> Outcome:
    endpoint = pair.endpoint
    sides = (pair.candidate, pair.reference)
    if endpoint.by != TOP1 and any(s.done and not s.by_seed(endpoint.metric) for s in sides):
        return "not_measured"
    if not pair.seeds:
        return "no_pairs"
    if len(pair.seeds) < FEWEST_SEEDS:
        return "too_few_seeds"
    if pair.tested is None:
        return "no_shifts"
    if pair.is_tie:
        return "tie"
    if p_holm is None or p_holm >= ALPHA:
        return "no_difference"
    if pair.tested.mean < 0:
        return "worse"
    if endpoint.metric == endpoint.id_metric:
        return "better"
    lower = None if pair.id is None else pair.id.lower95
    return "better" if lower is not None and lower > -endpoint.id_margin else "trade_off"


def _above_curve(pair: Pair, zero_shot: Arm | None) -> tuple[Estimate | None, Beyond | None]:
    """By common seed; no estimate where the reference has no WiSE-FT curve."""
    references = {run.seed: run for run in pair.reference.done}
    candidates = {run.seed: run for run in pair.candidate.done}
    axes = (pair.endpoint.id_metric, pair.endpoint.ood)
    values: list[float | None] = []
    sides: set[Beyond] = set()
    for seed in pair.seeds:
        start = None if zero_shot is None else zero_shot.run_of(seed)
        curve = run_curve(references[seed], start, *axes) if seed in references else None
        x, y = (candidates[seed].value(metric, pair.candidate.merge) for metric in axes)
        if curve is None or x is None or y is None:
            return None, None
        height = ood_at(curve, x)
        values.append(None if height is None else y - height)
        if height is None:
            sides.add("above" if x > max(point.id for point in curve.points) else "below")
    if not values:
        return None, None
    return estimate(values), "above or below" if len(sides) > 1 else next(iter(sides), None)


def _against_mean_curve(pair: Pair, zero_shot: Arm | None) -> tuple[float | None, Point | None]:
    axes = (pair.endpoint.id_metric, pair.endpoint.ood)
    curve = mean_curve(pair.reference, zero_shot, *axes)
    x, y = (estimate(pair.candidate.values(metric)).mean for metric in axes)
    if curve is None or x is None or y is None:
        return None, None
    height = ood_at(curve, x)
    return None if height is None else y - height, dominating(curve, x, y)
