"""The verdict on two arms: tests over seeds and test images, and the outcome."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from carft_sweep.tracking.comparison.hits import KeptHits
from carft_sweep.tracking.comparison.metrics import TOP1
from carft_sweep.tracking.comparison.power import Power
from carft_sweep.tracking.comparison.runs import Arm
from carft_sweep.tracking.comparison.spec import SEEDS_FOR_CLAIM, Endpoint
from carft_sweep.tracking.comparison.statistics import (
    ALPHA,
    DIGITS,
    Interval,
    PairedTest,
    deciding_level,
    holm,
)
from carft_sweep.tracking.comparison.wise_ft_curve import wise_alpha

GAIN = "gain/ood/top1"
Outcome = Literal[
    "better",
    "more_robust",
    "trade_off",
    "less_robust",
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
DIFFERENT: frozenset[Outcome] = frozenset(
    {"better", "more_robust", "trade_off", "less_robust", "worse"}
)
"""The outcomes that claim a difference of the endpoint."""
State = Literal[
    "BETTER", "MORE ROBUST", "TRADE-OFF", "LESS ROBUST", "WORSE", "NO GAIN", "UNDECIDED"
]
_STATES: Mapping[Outcome, State] = {
    "better": "BETTER",
    "more_robust": "MORE ROBUST",
    "trade_off": "TRADE-OFF",
    "less_robust": "LESS ROBUST",
    "worse": "WORSE",
    "tie": "NO GAIN",
}
IdState = Literal["kept", "lost", "gained", "open", "not tested"]


@dataclass(frozen=True)
class Pair:
    """A candidate and its reference over their common seeds, tested once in each metric."""

    candidate: Arm
    reference: Arm
    endpoint: Endpoint
    kept: KeptHits = field(compare=False, repr=False)
    _tests: dict[str, PairedTest | None] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def seeds(self) -> tuple[int | None, ...]:
        """Seeds on which both arms have OOD and ID accuracy, as far as both arms were measured in
        them."""
        metrics = (self.endpoint.ood, self.endpoint.id_metric)
        pairs = [(one, two) for one, two in map(self._values, metrics) if one and two]
        common = (s for s in self._seeds if all(s in side for pair in pairs for side in pair))
        return tuple(common) if pairs else ()

    def test(self, metric: str) -> PairedTest | None:
        """Test candidate minus reference over the common seeds; None where an arm lacks a value."""
        if metric not in self._tests:
            one, two = self._values(metric)
            arms = [(self.candidate, self.reference)]
            differences = [one[s] - two[s] for s in self.seeds if s in one and s in two]
            tested = differences and self.kept.paired_test(differences, arms, self.seeds, metric)
            self._tests[metric] = tested or None
        return self._tests[metric]

    @property
    def _seeds(self) -> list[int | None]:
        """Return the candidate's seeds, or the reference's where no seed changes the candidate."""
        side = self.candidate if self.candidate.has_seeds else self.reference
        return [run.seed for run in side.done]

    def _values(self, metric: str) -> tuple[dict[int | None, float], dict[int | None, float]]:
        """Return both arms' values by seed; a value that no seed changes counts for every seed."""
        seeds = self._seeds
        return self.candidate.values(metric, seeds), self.reference.values(metric, seeds)

    @property
    def ood(self) -> PairedTest | None:
        """The test of the OOD mean; None where an arm lacks a value."""
        return self.test(self.endpoint.ood)

    @property
    def id(self) -> PairedTest | None:
        """The test of ID accuracy; None where an arm lacks a value."""
        return self.test(self.endpoint.id_metric)

    @property
    def tested(self) -> PairedTest | None:
        """The test of the endpoint: the OOD mean, or ID accuracy; None if an arm lacks a value."""
        return self.ood if self.endpoint.has_shifts else self.id

    @property
    def p_different(self) -> float | None:
        """Two-sided p of the endpoint's difference; None where nothing can be tested."""
        return None if self.tested is None else self.tested.p

    @property
    def p_better(self) -> float | None:
        """P of the claim "better", one-sided at 2.5 % and doubled, so that 0.05 decides.

        The claim is that the endpoint gains and that ID loses less than the margin. Its p is the
        larger of the two: Berger, Multiparameter hypothesis testing and acceptance sampling,
        Technometrics 24 (1982). None where one of the two cannot be tested.
        """
        gains = None if self.tested is None else self.tested.p_above(0.0)
        keeps = None if self.id is None else self.id.p_above(-self.endpoint.id_margin)
        return self._both(gains, keeps)

    @property
    def p_worse(self) -> float | None:
        """The p of the claim that the reference is better than the candidate, like `p_better`."""
        loses = None if self.tested is None else self.tested.p_below(0.0)
        keeps = None if self.id is None else self.id.p_below(self.endpoint.id_margin)
        return self._both(loses, keeps)

    def _both(self, of_endpoint: float | None, of_id: float | None) -> float | None:
        ps = [of_endpoint, *([of_id] if self.endpoint.has_shifts else [])]
        return None if None in ps else min(1.0, 2 * max(p for p in ps if p is not None))

    @property
    def is_tie(self) -> bool:
        """Whether OOD and ID, as far as they were measured, are equal in every common seed."""
        tests = [test for test in (self.ood, self.id) if test is not None]
        return bool(tests) and all(test.is_tie for test in tests)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the verdicts on a candidate's unmerged model and on its curve have in common."""

    p_better: float | None
    """P of the claim "better", Holm-adjusted over all candidates of the comparison."""
    p_worse: float | None
    """P of the claim "worse", adjusted likewise."""
    compared: int
    """Number of candidates that the adjustment is over."""
    seeds: tuple[int, ...]
    """Seeds required on both sides."""
    tried: int
    """Number of settings that a side, the one with more, was chosen among on these seeds."""


@dataclass(frozen=True, kw_only=True)
class Verdict(Judgement):
    """The verdict on one candidate against the reference."""

    pair: Pair
    outcome: Outcome
    p_different: float | None
    """P of the endpoint's difference, Holm-adjusted over all candidates of the comparison."""
    level: float
    """Confidence level of the deciding intervals: above 95 % with several candidates."""

    @property
    def state(self) -> State:
        """The state that the sentence begins with. NO GAIN excludes a gain of the margin's size."""
        if self.outcome == "no_difference":
            interval = self.interval(self.pair.endpoint.metric)
            margin = self.pair.endpoint.margin
            return "NO GAIN" if interval is not None and interval.high < margin else "UNDECIDED"
        return _STATES.get(self.outcome, "UNDECIDED")

    def interval(self, metric: str) -> Interval | None:
        """Return the interval that decides on the difference of a metric; None without a test."""
        test = self.pair.test(metric)
        return None if test is None else test.interval(self.level)

    @property
    def power(self) -> Power | None:
        """Power of the test of the endpoint; None without a test."""
        return Power.of(self.pair.tested, self.level)

    @property
    def id_state(self) -> IdState:
        """What is sure of ID: `lost`, `gained`, `kept` within the margin, `open` or `not
        tested`."""
        return _id_state(self.pair, self.level)


def _id_state(pair: Pair, level: float) -> IdState:
    interval = None if pair.id is None else pair.id.interval(level)
    if interval is None:
        return "not tested"
    if interval.high < 0:
        return "lost"
    if interval.low > 0:
        return "gained"
    return "kept" if interval.low > -pair.endpoint.id_margin else "open"


def judge(
    candidates: Sequence[Arm],
    reference: Arm,
    endpoint: Endpoint,
    kept: KeptHits,
    *,
    seeds: Sequence[int] = (),
    tried: Mapping[str, int] | None = None,
) -> tuple[Verdict, ...]:
    """Return a verdict of every candidate against the reference, Holm-adjusted over all of them.

    Candidates that cannot be tested count too: the arms are fixed before it is known which can be.

    Args:
        candidates: The arm that represents each algorithm.
        reference: The arm that they are compared with.
        endpoint: What is tested, and the margins.
        kept: Reader of the predictions, for the errors over images.
        seeds: Required on both sides; where one is missing, nothing is claimed.
        tried: Number of settings that each algorithm's arm was chosen among on these seeds.
    """
    pairs = [Pair(candidate, reference, endpoint, kept) for candidate in candidates]
    different = holm([pair.p_different for pair in pairs])
    better = holm([pair.p_better for pair in pairs])
    worse = holm([pair.p_worse for pair in pairs])
    verdicts = []
    for pair, p_different, p_better, p_worse in zip(pairs, different, better, worse, strict=True):
        level = deciding_level(pair.p_different, p_different, len(pairs))
        outcome = _outcome(pair, p_different, p_better, p_worse, level, seeds)
        if outcome == "better":
            level = deciding_level(pair.p_better, p_better, len(pairs))
        if outcome == "worse":
            level = deciding_level(pair.p_worse, p_worse, len(pairs))
        verdicts.append(
            Verdict(
                pair=pair,
                outcome=outcome,
                p_different=p_different,
                p_better=p_better,
                p_worse=p_worse,
                level=level,
                compared=len(pairs),
                seeds=tuple(seeds),
                tried=max((tried or {}).get(a.algorithm, 1) for a in (pair.candidate, reference)),
            )
        )
    return tuple(verdicts)


def zero_shot_of(arm: Arm, zero_shots: Sequence[Arm]) -> Arm | None:
    """Return the finished zero-shot arm with the same prompts and data as this arm, or None."""
    for zero_shot in zero_shots:
        shared = {key: zero_shot.params[key] for key in zero_shot.params if key in arm.params}
        if zero_shot.done and all(arm.params[key] == value for key, value in shared.items()):
            return zero_shot
    return None


def _outcome(
    pair: Pair,
    p_different: float | None,
    p_better: float | None,
    p_worse: float | None,
    level: float,
    seeds: Sequence[int],
) -> Outcome:
    endpoint = pair.endpoint
    sides = (pair.candidate, pair.reference)
    if endpoint.by != TOP1 and any(s.done and not s.values(endpoint.metric) for s in sides):
        return "not_measured"
    if not pair.seeds:
        return "no_pairs"
    if any(side.has_seeds for side in sides) and not {*seeds} <= {*pair.seeds}:
        return "incomplete"
    if len(pair.seeds) < SEEDS_FOR_CLAIM:
        return "too_few_seeds"
    if pair.tested is None:
        return "no_shifts"
    if pair.is_tie:
        return "tie"
    if p_different is None:
        return "no_spread"
    if p_better is not None and p_better < ALPHA:
        return "better"
    if p_worse is not None and p_worse < ALPHA:
        return "worse"
    if p_different >= ALPHA:
        return "no_difference"
    of_id, gains = _id_state(pair, level), pair.tested.mean > 0
    if of_id == ("lost" if gains else "gained"):
        return "trade_off"
    return "more_robust" if gains else "less_robust"


@dataclass(frozen=True)
class Strongest:
    """The model with the best endpoint among those that keep ID: described, never selected."""

    arm: Arm
    verdict: Verdict | None
    """Verdict against the second-highest model; None where there is none."""
    eligible: int
    """Number of models that keep ID."""
    models: int
    """Number of models that have all seeds and both values."""


def find_strongest(
    models: Iterable[Arm],
    reference: Arm | None,
    endpoint: Endpoint,
    kept: KeptHits,
    seeds: Sequence[int],
) -> Strongest | None:
    """Return the complete arm with the highest mean of the endpoint, compared with the next.

    Arms whose mean ID is below the reference's by more than the margin are left out. Of means that
    are equal, or differ by float rounding only, the earlier arm's counts. None where no arm has all
    seeds and both means.
    """
    valued = []
    for arm in models:
        height, id_mean = arm.mean(endpoint.metric), arm.mean(endpoint.id_metric)
        if height is not None and id_mean is not None and arm.is_complete(seeds):
            valued.append((height, id_mean, arm))
    base = None if reference is None else reference.mean(endpoint.id_metric)
    least = -math.inf if base is None or not endpoint.has_shifts else base - endpoint.id_margin
    eligible = [
        (round(height, DIGITS), arm)
        for height, id_mean, arm in valued
        if round(id_mean - least, DIGITS) >= 0
    ]
    if not eligible:
        return None
    best, *others = (arm for _, arm in sorted(eligible, key=lambda item: -item[0]))
    verdicts = judge([best], others[0], endpoint, kept, seeds=seeds) if others else [None]
    return Strongest(best, verdicts[0], len(eligible), len(valued))


def measured_models(arms: Iterable[Arm]) -> Iterator[Arm]:
    """Yield each arm unmerged, and the arm of each measured merged model. The ends of WiSE-FT are
    left out: they are the zero-shot and the unmerged model."""
    for arm in arms:
        yield arm
        for label in () if arm.is_zero_shot else arm.merge_labels:
            if wise_alpha(label) not in (0.0, 1.0):
                yield arm.merged(label)
