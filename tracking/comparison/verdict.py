"""What the numbers allow to be said of two arms: tests over common seeds and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tracking.comparison.metrics import ID, OOD, TOP1, kind_of
from tracking.comparison.runs import Arm
from tracking.comparison.spec import Terms
from tracking.comparison.statistics import (
    Interval,
    Paired,
    Summary,
    holm,
    lower_bound,
    paired,
    summary,
)
from tracking.comparison.wise_ft import Curve, Point, dominating, mean_curve, ood_at, run_curve

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
class Difference:
    """Candidate minus reference on common seeds; each part None where it was not measured."""

    candidate: Arm
    reference: Arm
    seeds: tuple[int | None, ...]
    ood: Paired | None
    id: Paired | None
    id_metric: str = ID
    ood_metric: str = OOD

    def on(self, endpoint: str) -> Paired | None:
        """The pairs of the endpoint: of the shifts, or of ID."""
        return self.ood if endpoint == self.ood_metric else self.id

    @property
    def id_lower(self) -> float | None:
        """The one-sided 95 % lower bound of the ID difference."""
        return None if self.id is None else lower_bound(self.id.differences)

    @property
    def is_tie(self) -> bool:
        """Whether OOD and ID, as far as they were measured, are equal in every common seed."""
        pairs = [pair for pair in (self.ood, self.id) if pair is not None]
        return bool(pairs) and all(pair.is_tie for pair in pairs)

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON."""
        return {
            "candidate": self.candidate.label,
            "reference": self.reference.label,
            "seeds": list(self.seeds),
            self.ood_metric: None if self.ood is None else self.ood.as_dict(),
            self.id_metric: None if self.id is None else self.id.as_dict(),
            "id_lower95": self.id_lower,
        }


@dataclass(frozen=True)
class Finding:
    """One candidate against the reference."""

    difference: Difference
    p_holm: float | None
    """Of the endpoint's difference, over all candidates of the comparison."""
    outcome: Outcome
    gain: Summary | None
    """OOD mean minus zero-shot's, by seed."""
    above_curve: Summary | None
    """OOD minus the reference's WiSE-FT curve at equal ID, by seed; None outside its ID range."""
    beyond: Beyond | None
    """Where the ID accuracies lie that the curve does not reach."""
    above_mean_curve: float | None
    """The same of the means over seeds; None where they lie outside the mean curve's ID range."""
    dominated_by: Point | None
    """The model on the reference's curve that is as good on both and better on one, if any."""
    merged: Mapping[str, Difference] = field(default_factory=dict)
    """By merge: the same difference with the merge on both, each at its own chosen label."""
    endpoint: str = OOD
    """What was tested."""
    ci95_images: Mapping[str, Interval] = field(default_factory=dict)
    """By metric: bootstrap over images of the difference, the weights held fixed."""

    @property
    def candidate(self) -> Arm:
        """The arm that is judged."""
        return self.difference.candidate

    @property
    def reference(self) -> Arm:
        """What it is judged against."""
        return self.difference.reference

    @property
    def ood_images(self) -> Interval | None:
        """The interval over images of the OOD difference."""
        return self.ci95_images.get(self.difference.ood_metric)

    @property
    def gains_over_curve(self) -> bool:
        """Whether it gives what the reference with WiSE-FT is shown not to give."""
        above = self.above_curve
        if above is None or above.ci95 is None or self.dominated_by is not None:
            return False
        return above.ci95.low > 0

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON."""
        above, beaten = self.above_curve, self.dominated_by
        return {
            **self.difference.as_dict(),
            "p_holm": self.p_holm,
            "outcome": self.outcome,
            "endpoint": self.endpoint,
            f"gain/ood/{kind_of(self.difference.ood_metric)}": None
            if self.gain is None
            else self.gain.as_dict(),
            "above_wise_ft_curve": None if above is None else above.as_dict(),
            "above_wise_ft_mean_curve": self.above_mean_curve,
            "dominated_by": None if beaten is None else beaten._asdict(),
            "merged": {name: pair.as_dict() for name, pair in self.merged.items()},
            "ood_ci95_images": None if self.ood_images is None else list(self.ood_images),
            "ci95_images": {name: list(ends) for name, ends in self.ci95_images.items()},
        }


def judge(
    candidates: Sequence[Arm],
    reference: Arm,
    terms: Terms,
    *,
    zero_shots: Sequence[Arm] = (),
    chosen_merges: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[Finding, ...]:
    """Every candidate against the reference, Holm-adjusted over those that can be tested.

    `chosen_merges` gives, by the label of an unmerged arm, the label chosen for each merge.
    """
    chosen = chosen_merges or {}
    axes = (terms.id_metric, terms.ood)
    differences = [differ(candidate, reference, *axes) for candidate in candidates]
    tested = [difference.on(terms.endpoint) for difference in differences]
    raw = [None if pair is None else pair.p for pair in tested]
    adjusted = iter(holm([p for p in raw if p is not None]))
    findings = []
    for difference, p in zip(differences, raw, strict=True):
        p_holm = None if p is None else next(adjusted)
        finding = _measured(difference, p_holm, terms, zero_shots)
        findings.append(replace(finding, merged=_merged(difference, chosen)))
    return tuple(findings)


def differ(
    candidate: Arm, reference: Arm, id_metric: str = ID, ood_metric: str = OOD
) -> Difference:
    """Paired over the seeds in which both have every number that is compared.

    A reference that no seed changes (zero-shot) stands against each seed of the candidate.
    """
    columns: dict[str, tuple[dict[int | None, float], dict[int | None, float]]] = {}
    for metric in (ood_metric, id_metric):
        ours, theirs = candidate.by_seed(metric), reference.by_seed(metric)
        if not reference.has_seeds and theirs:
            theirs = dict.fromkeys(ours, next(iter(theirs.values())))
        if ours and theirs:
            columns[metric] = (ours, theirs)
    seeds: list[int | None] = [
        run.seed
        for run in candidate.done
        if columns and all(run.seed in side for pair in columns.values() for side in pair)
    ]
    tests: dict[str, Paired] = {}
    if seeds:
        for metric, (ours, theirs) in columns.items():
            tests[metric] = paired([ours[s] for s in seeds], [theirs[s] for s in seeds])
    pairs = (tests.get(ood_metric), tests.get(id_metric))
    return Difference(candidate, reference, tuple(seeds), *pairs, id_metric, ood_metric)


def curves_of(arms: Sequence[Arm], zero_shots: Sequence[Arm], terms: Terms) -> tuple[Curve, ...]:
    """The mean WiSE-FT curves of those that have one."""
    axes = (terms.id_metric, terms.ood)
    found = (mean_curve(arm, zero_shot_of(arm, zero_shots), *axes) for arm in arms)
    return tuple(curve for curve in found if curve is not None)


def zero_shot_of(arm: Arm, zero_shots: Sequence[Arm]) -> Arm | None:
    """The zero-shot arm, with a finished run, under this arm's own prompts and data."""
    for zero_shot in zero_shots:
        shared = {key: zero_shot.params[key] for key in zero_shot.params if key in arm.params}
        if zero_shot.done and all(arm.params[key] == value for key, value in shared.items()):
            return zero_shot
    return None


def gain_over_zero_shot(
    arm: Arm, zero_shots: Sequence[Arm], ood_metric: str = OOD
) -> Summary | None:
    """OOD mean minus zero-shot's by seed: as the run measured it, else from the zero-shot arm.

    Runs measure it of top-1 alone.
    """
    measured = arm.values(GAIN) if ood_metric == OOD else ()
    if measured and None not in measured:
        return summary(measured)
    base = zero_shot_of(arm, zero_shots)
    if base is None or not arm.done:
        return None
    starts = [
        run.value(ood_metric) if (run := base.run_of(ours.seed)) else None for ours in arm.done
    ]
    if None in starts:
        return None
    pairs = zip(arm.values(ood_metric), starts, strict=True)
    return summary(
        [None if value is None or start is None else value - start for value, start in pairs]
    )


def _measured(
    difference: Difference, p_holm: float | None, terms: Terms, zero_shots: Sequence[Arm]
) -> Finding:
    candidate, reference = difference.candidate, difference.reference
    zero_shot = zero_shot_of(reference, zero_shots)
    above, beyond = _above_curve(difference, zero_shot)
    above_mean, dominated_by = _against_mean_curve(difference, zero_shot)
    return Finding(
        difference=difference,
        p_holm=p_holm,
        outcome=_outcome(difference, p_holm, terms),
        gain=gain_over_zero_shot(candidate, zero_shots, terms.ood),
        above_curve=above,
        beyond=beyond,
        above_mean_curve=above_mean,
        dominated_by=dominated_by,
        endpoint=terms.endpoint,
    )


def _outcome(difference: Difference, p_holm: float | None, terms: Terms) -> Outcome:
    if _is_not_measured(difference, terms):
        return "not_measured"
    if not difference.seeds:
        return "no_pairs"
    if len(difference.seeds) < terms.fewest_seeds:
        return "too_few_seeds"
    tested = difference.on(terms.endpoint)
    if tested is None:
        return "no_shifts"
    if difference.is_tie:
        return "tie"
    if p_holm is None or p_holm >= terms.alpha:
        return "no_difference"
    if tested.mean < 0:
        return "worse"
    if terms.endpoint == terms.id_metric:
        return "better"
    lower = difference.id_lower
    return "better" if lower is not None and lower > -terms.id_margin else "trade_off"


def _is_not_measured(difference: Difference, terms: Terms) -> bool:
    """Whether finished runs of a side lack what they are to be judged by, as of old do."""
    sides = (difference.candidate, difference.reference)
    return terms.by != TOP1 and any(
        side.done and not side.by_seed(terms.endpoint) for side in sides
    )


def _above_curve(
    difference: Difference, zero_shot: Arm | None
) -> tuple[Summary | None, Beyond | None]:
    """By common seed; no summary where the reference has no WiSE-FT curve."""
    runs = {run.seed: run for run in difference.reference.done}
    ours = {run.seed: run for run in difference.candidate.done}
    merge, axes = difference.candidate.merge, (difference.id_metric, difference.ood_metric)
    values: list[float | None] = []
    sides: set[Beyond] = set()
    for seed in difference.seeds:
        start = None if zero_shot is None else zero_shot.run_of(seed)
        curve = run_curve(runs[seed], start, *axes) if seed in runs else None
        x, y = (ours[seed].value(metric, merge) for metric in axes)
        if curve is None or x is None or y is None:
            return None, None
        height = ood_at(curve, x)
        values.append(None if height is None else y - height)
        if height is None:
            sides.add("above" if x > max(point.id for point in curve.points) else "below")
    if not values:
        return None, None
    return summary(values), "above or below" if len(sides) > 1 else next(iter(sides), None)


def _against_mean_curve(
    difference: Difference, zero_shot: Arm | None
) -> tuple[float | None, Point | None]:
    axes = (difference.id_metric, difference.ood_metric)
    curve = mean_curve(difference.reference, zero_shot, *axes)
    x, y = (summary(difference.candidate.values(metric)).mean for metric in axes)
    if curve is None or x is None or y is None:
        return None, None
    height = ood_at(curve, x)
    return None if height is None else y - height, dominating(curve, x, y)


def _merged(
    difference: Difference, chosen: Mapping[str, Mapping[str, str]]
) -> Mapping[str, Difference]:
    candidate, reference = difference.candidate, difference.reference
    ours, theirs = chosen.get(candidate.label, {}), chosen.get(reference.label, {})
    return {
        name: differ(
            candidate.merged(ours[name]),
            reference.merged(theirs[name]),
            difference.id_metric,
            difference.ood_metric,
        )
        for name in ours
        if name in theirs
    }
