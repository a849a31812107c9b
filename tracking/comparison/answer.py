"""What a reader asks a comparison: what to use, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from carft_sweep.tracking.comparison.curves import CurveVerdict
from carft_sweep.tracking.comparison.effects import Association, Effect
from carft_sweep.tracking.comparison.hits import KeptHits
from carft_sweep.tracking.comparison.runs import Arm
from carft_sweep.tracking.comparison.selection import Selection
from carft_sweep.tracking.comparison.spec import Endpoint, SelectionRule
from carft_sweep.tracking.comparison.statistics import DIGITS, Estimate, estimate
from carft_sweep.tracking.comparison.verdict import Verdict, judge, zero_shot_of
from carft_sweep.tracking.comparison.wise_ft import wise_alpha


@dataclass(frozen=True)
class Model:
    """An arm with the two means that it is described by."""

    arm: Arm
    id: Estimate
    endpoint: Estimate
    """The OOD mean; without shifts the ID test."""


@dataclass(frozen=True)
class Strongest:
    """The model with the best endpoint among those that keep ID: described, never selected."""

    model: Model
    runner_up: Model | None
    verdict: Verdict | None
    """Against the runner-up; None where it is alone."""
    eligible: int
    """How many models keep ID."""
    models: int
    """How many have all seeds and both values."""


@dataclass(frozen=True)
class Answer:
    """What is said first."""

    lines: tuple[str, ...]
    """A sentence each: the candidate's curve against the reference's, the candidate against the
    reference, against zero-shot, the strongest model, and what each varied field does."""
    curve: CurveVerdict | None = None
    """Of the candidate with WiSE-FT against the reference with WiSE-FT; None without merges."""
    strongest: Strongest | None = None
    verdict: Verdict | None = None
    """Of the candidate against the reference."""
    against_zero_shot: Verdict | None = None
    """Of the same candidate; None where zero-shot is the reference or was not run."""
    effects: tuple[Effect, ...] = ()
    associations: tuple[Association, ...] = ()


def find_strongest(
    models: Iterable[Arm],
    reference: Arm | None,
    endpoint: Endpoint,
    seeds: Sequence[int],
    kept: KeptHits | None = None,
) -> Strongest | None:
    """Find the highest mean of the endpoint among complete arms, and compare it with the next.

    Left out are arms whose mean ID is below the reference's by more than the margin. Of means that
    are equal, or differ by float rounding only, the earlier arm's counts. None where no arm has
    all seeds and both means.
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
    (_, best), *others = sorted(eligible, key=lambda item: -item[0])
    model = _model(best, endpoint)
    if not others:
        return Strongest(model, None, None, len(eligible), len(valued))
    following = others[0][1]
    (verdict,) = judge([best], following, endpoint, seeds=seeds, kept=kept)
    runner_up = _model(following, endpoint)
    return Strongest(model, runner_up, verdict, len(eligible), len(valued))


def _model(arm: Arm, endpoint: Endpoint) -> Model:
    of_id, of_endpoint = (
        estimate([*arm.values(metric).values()]) for metric in (endpoint.id_metric, endpoint.metric)
    )
    return Model(arm, of_id, of_endpoint)


def measured_models(arms: Iterable[Arm]) -> list[Arm]:
    """List each arm unmerged and through every merged model that was measured.

    Neither end of WiSE-FT is a model of its own: it is the zero-shot or the unmerged one.
    """
    models = []
    for arm in arms:
        labels = [label for label in arm.merge_labels if wise_alpha(label) not in (0.0, 1.0)]
        models += [arm, *(arm.merged(label) for label in labels if not arm.is_zero_shot)]
    return models


def find_verdict(
    verdicts: Sequence[Verdict], best: Selection | None, rule: SelectionRule
) -> Verdict | None:
    """Find the verdict of the selected setting's algorithm.

    Where that is the reference itself, take the candidate with the best value of selection.
    """
    if best is not None:
        for verdict in verdicts:
            if verdict.pair.candidate.algorithm == best.arm.algorithm:
                return verdict
    valued = [
        (rule.better(value), verdict)
        for verdict in verdicts
        if (value := verdict.pair.candidate.mean(rule.metric)) is not None
    ]
    if valued:
        return max(valued, key=lambda item: item[0])[1]
    return verdicts[0] if verdicts else None


def judge_against_zero_shot(
    arm: Arm,
    zero_shots: Sequence[Arm],
    endpoint: Endpoint,
    seeds: Sequence[int],
    tried: int,
    kept: KeptHits | None = None,
) -> Verdict | None:
    """Judge an arm against the zero-shot model under its own prompts, by itself; None without."""
    zero_shot = zero_shot_of(arm, zero_shots)
    if zero_shot is None or not arm.trains:
        return None
    tries = {arm.algorithm: tried}
    (verdict,) = judge([arm], zero_shot, endpoint, seeds=seeds, tried=tries, kept=kept)
    return verdict
