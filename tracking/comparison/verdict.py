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
from tracking.comparison.wise_ft import Curve, Point, dominating, mean_curve, ood_at, seed_curves

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
        common = (s for s in self._seeds if all(s in side for pair in pairs for side in pair))
        return tuple(common) if pairs else ()

    def test(self, metric: str) -> PairedTest | None:
        """Test candidate minus reference over the common seeds; None where a side has no value."""
        if metric not in self._tests:
            one, two = self._values(metric)
            differences = tuple(one[s] - two[s] for s in self.seeds if s in one and s in two)
            self._tests[metric] = PairedTest(differences) if differences else None
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
    raw = [None if pair.tested is None else pair.tested.p for pair in pairs]
    adjusted = iter(holm([p for p in raw if p is not None]))
    zero_shot = zero_shot_of(reference, zero_shots)
    curves = seed_curves(reference, zero_shot, endpoint.id_metric, endpoint.ood)
    curve = mean_curve(reference, curves)
    labels = merges or {}
    own = labels.get(reference.label, {})
    verdicts = []
    for pair, p in zip(pairs, raw, strict=True):
        p_holm = None if p is None else next(adjusted)
        verdicts.append(
            Verdict(
                pair,
                p_holm,
                _outcome(pair, p_holm),
                gain_over_zero_shot(pair.candidate, zero_shots, endpoint.ood),
                *_above_curve(pair, curves),
                *_above_mean_curve(pair, curve),
                merged={
                    merge: Pair(
                        pair.candidate.merged(label), reference.merged(own[merge]), endpoint
                    )
                    for merge, label in labels.get(pair.candidate.label, {}).items()
                    if merge in own
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


def _outcome(pair: Pair, p_holm: float | None) -> Outcome:
    endpoint = pair.endpoint
    sides = (pair.candidate, pair.reference)
    if endpoint.by != TOP1 and any(s.done and not s.values(endpoint.metric) for s in sides):
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


def _above_curve(
    pair: Pair, curves: Mapping[int | None, Curve]
) -> tuple[Estimate | None, Beyond | None]:
    """Compare with the reference's curve of each common seed; nothing where one has no curve."""
    xs = pair.candidate.values(pair.endpoint.id_metric)
    ys = pair.candidate.values(pair.endpoint.ood)
    if not pair.seeds or not all(s in side for s in pair.seeds for side in (curves, xs, ys)):
        return None, None
    heights = {seed: ood_at(curves[seed], xs[seed]) for seed in pair.seeds}
    sides: set[Beyond] = {
        "above" if xs[seed] > max(point.id for point in curves[seed].points) else "below"
        for seed, height in heights.items()
        if height is None
    }
    above = estimate([None if h is None else ys[seed] - h for seed, h in heights.items()])
    return above, "above or below" if len(sides) > 1 else next(iter(sides), None)


def _above_mean_curve(pair: Pair, curve: Curve | None) -> tuple[float | None, Point | None]:
    """Compare the means over seeds with the curve; name the model on it that dominates them."""
    x, y = pair.candidate.mean(pair.endpoint.id_metric), pair.candidate.mean(pair.endpoint.ood)
    if curve is None or x is None or y is None:
        return None, None
    height = ood_at(curve, x)
    return None if height is None else y - height, dominating(curve, x, y)
