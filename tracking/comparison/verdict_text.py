"""A verdict in plain English: what was compared, by how much, how sure, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tracking.comparison.metrics import NOUNS, named
from tracking.comparison.runs import Arm, split_merge
from tracking.comparison.selection import Confirmation
from tracking.comparison.spec import FEWEST_SEEDS, Endpoint
from tracking.comparison.statistics import Estimate, Interval
from tracking.comparison.verdict import Pair, Verdict

NO_SHIFTS = "No shift was measured, so nothing is said of robustness."
NO_VALUE = "No verdict: no run gave a value to select on."


def with_interval(value: float, ci95: Interval | None = None) -> str:
    """Format a difference in percentage points with its interval: `+1.80 pp [+1.49, +2.11]`."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    middle, *ends = [f"{round(100 * v, 2) + 0.0:+.2f}" for v in (value, *(ci95 or ()))]
    return f"{middle} pp [{', '.join(ends)}]" if ends else f"{middle} pp"


def sentences(verdict: Verdict, tests: int) -> Iterator[str]:
    """Describe one verdict; `tests` is how many Holm's adjustment covers."""
    pair = verdict.pair
    yield _main(verdict, tests)
    if not pair.endpoint.has_shifts:
        yield NO_SHIFTS
    # Where zero-shot is the reference, the first sentence holds that difference already.
    if not (pair.reference.is_zero_shot and pair.ood is not None):
        yield from gain_sentence(verdict.gain, pair.endpoint)
    if verdict.above_curve is not None:
        yield f"{_curve(verdict, verdict.above_curve)}."
    for name, merged in verdict.merged.items():
        yield _merged(name, merged)


def over_images(verdict: Verdict) -> Iterator[str]:
    """Describe how much other images would change the difference, where intervals were made."""
    pair = verdict.pair
    metrics = (pair.endpoint.ood, pair.endpoint.id_metric)
    numbers = [
        f"{named(metric)} {with_interval(test.mean, ends)}"
        for metric in metrics
        if (test := pair.test(metric)) and (ends := verdict.ci95_images.get(metric)) is not None
    ]
    if numbers:
        of = f"{pair.candidate.name} minus {pair.reference.name}"
        yield (
            f"Over images instead of seeds (bootstrap, these weights): {of}, {'; '.join(numbers)}."
        )


def no_reference(
    arm: Arm, reference: str, gain: Estimate | None, endpoint: Endpoint
) -> Iterator[str]:
    """Say that there is nothing finished to compare with."""
    if arm.algorithm == reference:
        yield f"No comparison: {reference} is the only algorithm here, at {arm.name}."
    else:
        yield f"No verdict: there is no finished {reference} run to compare {arm.name} with."
    yield from gain_sentence(gain, endpoint)


def gain_sentence(gain: Estimate | None, endpoint: Endpoint) -> Iterator[str]:
    """State the difference to zero-shot."""
    if gain is not None and gain.mean is not None:
        number = with_interval(gain.mean, gain.ci95)
        yield f"Against zero-shot its {named(endpoint.ood)} is {number}."


def confirmed(confirmation: Confirmation, selected_on: Sequence[int]) -> Iterator[str]:
    """Say which seeds the verdict is of, where fresh ones were required."""
    if not confirmation.required:
        return
    fresh = _seeds(confirmation.seeds)
    if confirmation.is_complete:
        yield (
            f"The settings were chosen on {_seeds(selected_on)} and judged on {fresh}, which no "
            "choice has seen."
        )
    else:
        yield (
            f"Not confirmed yet: {confirmation.done} of {confirmation.required} runs on {fresh} "
            "are done, so this is judged on the seeds that the settings were chosen on."
        )


def _main(verdict: Verdict, tests: int) -> str:
    pair, endpoint = verdict.pair, verdict.pair.endpoint
    sides, noun, n = (pair.candidate, pair.reference), NOUNS[endpoint.by], len(pair.seeds)
    candidate, reference = (arm.name for arm in sides)
    minus = f"{candidate} minus {reference}"
    seeds = f"{'fresh ' if any(a.confirms for a in sides) else ''}seed{'' if n == 1 else 's'}"
    over, test, (ood, id_test) = f"{n} {seeds}", _test(verdict, tests), _differences(pair)
    numbers = f"{ood} over {over} ({test})"
    beside = f"; {id_test}" if id_test else ""
    match verdict.outcome:
        case "no_pairs":
            return f"No verdict: {candidate} and {reference} have no finished seed in common."
        case "not_measured":
            without = " and of ".join(a.name for a in sides if not a.values(endpoint.metric))
            return (
                f"No verdict: {candidate} and {reference} cannot be judged by {noun}, since the "
                f"runs of {without} have no {endpoint.metric}."
            )
        case "too_few_seeds":
            untested = "no shift was measured" if pair.tested is None else "no test below 3 seeds"
            so_far = f"{minus}: {'; '.join(filter(None, (ood, id_test)))} ({test or untested})"
            if pair.tested is not None and pair.is_tie:
                so_far = f"So far a tie: {_tied(pair, over)}"
            return f"Inconclusive: {n} common {seeds}, {FEWEST_SEEDS} required. {so_far}."
        case "no_shifts":
            return (
                f"No verdict on robustness, as no shift was measured: {minus} over {over}, "
                f"{id_test}."
            )
        case "tie":
            return f"A tie: {_tied(pair, over)}."
        case outcome if not endpoint.has_shifts:
            claim = f"{candidate} is {outcome} than {reference} in distribution"
            if outcome == "no_difference":
                claim = f"No difference in {noun} is shown between {candidate} and {reference}"
            return f"{claim}: {id_test} over {over} ({test})."
        case "better":
            return f"{candidate} is better than {reference}: {numbers}; {_id_margin(verdict)}."
        case "trade_off":
            return (
                f"{candidate} is more robust than {reference} but not better: {numbers}; "
                f"{_id_margin(verdict)}."
            )
        case "worse":
            return f"{candidate} is less robust than {reference}: {numbers}{beside}."
        case _:
            return (
                f"No difference in robustness is shown between {candidate} and {reference}: "
                f"{numbers}{beside}."
            )


def _id_margin(verdict: Verdict) -> str:
    """Write `ID test is non-inferior (+0.10 pp [-0.20, +0.40], margin 0.5 pp)`."""
    test, endpoint = verdict.pair.id, verdict.pair.endpoint
    is_shown = "is" if verdict.outcome == "better" else "is not shown to be"
    claim, margin = f"{is_shown} non-inferior", f"margin {100 * endpoint.id_margin:.3g} pp"
    if test is None:
        return f"ID {NOUNS[endpoint.by]} was not measured, so it {claim} ({margin})"
    return f"{named(endpoint.id_metric)} {claim} ({with_interval(test.mean, test.ci95)}, {margin})"


def _tied(pair: Pair, over: str) -> str:
    metrics = {pair.endpoint.ood: pair.ood, pair.endpoint.id_metric: pair.id}
    equal = " and ".join(named(metric) for metric, test in metrics.items() if test is not None)
    names = f"{pair.candidate.name} and {pair.reference.name}"
    return f"{names} are equal in {equal}, in {'' if len(pair.seeds) == 1 else 'each of '}{over}"


def _differences(pair: Pair) -> tuple[str, str]:
    """Write `OOD mean +1.80 pp [+1.49, +2.11]`, and the same of ID; empty where not measured."""
    tests = ((pair.endpoint.ood, pair.ood), (pair.endpoint.id_metric, pair.id))
    ood, id_test = (
        "" if test is None else f"{named(metric)} {with_interval(test.mean, test.ci95)}"
        for metric, test in tests
    )
    return ood, id_test


def _test(verdict: Verdict, tests: int) -> str:
    tested = verdict.pair.tested
    if tested is None or tested.p is None or verdict.p_holm is None:
        return ""
    ps = (tested.p, verdict.p_holm)
    raw, adjusted = ("p < 0.001" if p < 0.001 else f"p = {p:.3f}" for p in ps)
    return f"paired t: {raw}, Holm over {tests}: {adjusted}" if tests > 1 else f"paired t: {raw}"


def _curve(verdict: Verdict, above: Estimate) -> str:
    """Compare with the reference's WiSE-FT curve at equal ID accuracy."""
    endpoint, algorithm = verdict.pair.endpoint, verdict.pair.reference.algorithm
    rival, noun, n = f"{algorithm} + WiSE-FT", NOUNS[endpoint.by], len(above.values)
    point, dominated = verdict.dominated_by, ""
    if point is not None:
        ends = {0.0: "zero-shot", 1.0: f"{algorithm} itself"}
        model = ends.get(point.alpha, f"{algorithm} at alpha {point.alpha:g}")
        dominated = f", and {model} is at least as good on both"
    if above.mean is None:
        out = sum(value is None for value in above.values)
        seeds = f"In all {n} seeds" if out == n > 1 else f"In {out} of {n} seeds"
        where = {"above": "exceeds", "below": "is below"}.get(verdict.beyond or "", "is outside of")
        text = f"{seeds} its ID {noun} {where} {algorithm}'s WiSE-FT curve; "
        text += "no equal-ID comparison is possible"
        if verdict.above_mean_curve is not None:
            mean = with_interval(verdict.above_mean_curve)
            text += f" for each seed, that of the means is {mean}"
        return text + dominated
    number = with_interval(above.mean, above.ci95)
    text = f"At equal ID {noun} its {named(endpoint.ood)} is {number} against the curve of {rival}"
    if n < FEWEST_SEEDS or above.ci95 is None:
        return text + dominated
    if verdict.gains_over_curve:
        return f"{text}: a gain that {rival} does not give"
    if above.ci95.high < 0 or dominated:
        return f"{text}{dominated}: no gain over {rival}"
    return f"{text}: no gain over {rival} is shown"


def _merged(name: str, pair: Pair) -> str:
    labels = [arm.merge or "" for arm in (pair.candidate, pair.reference)]
    candidate, reference = (
        label if (alpha := split_merge(label)[1]) is None else f"{alpha:g}" for label in labels
    )
    head = f"With {name} on both (alpha {candidate} and {reference}, chosen by the same rule)"
    if not pair.seeds:
        return f"{head} there is no seed in common."
    return f"{head}: {', '.join(filter(None, _differences(pair)))}; described, not tested."


def _seeds(seeds: Sequence[int]) -> str:
    """Write `seed 0`, `seeds 5 to 9`, or `seeds 5, 7, 9`."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
