"""A verdict in plain English: what was compared, by how much, how sure, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tracking.comparison.metrics import NOUNS, kind_of, named
from tracking.comparison.runs import CONFIRMED, Arm, merge_number
from tracking.comparison.selection import Confirmation
from tracking.comparison.spec import FEWEST_SEEDS, Endpoint
from tracking.comparison.statistics import Estimate, Interval, PairedTest
from tracking.comparison.verdict import Pair, Verdict

NO_SHIFTS = "No shift was measured, so nothing is said of robustness."
NO_VALUE = "No verdict: no run gave a value to select on."


def with_interval(value: float, ci95: Interval | None = None) -> str:
    """Format a difference in percentage points with its interval: `+1.80 pp [+1.49, +2.11]`."""
    ends = "" if ci95 is None else f" [{_signed(ci95.low)}, {_signed(ci95.high)}]"
    return f"{_signed(value)} pp{ends}"


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
        of = f"{_name(pair.candidate)} minus {_name(pair.reference)}"
        yield (
            f"Over images instead of seeds (bootstrap, these weights): {of}, {'; '.join(numbers)}."
        )


def no_reference(
    arm: Arm, reference: str, gain: Estimate | None, endpoint: Endpoint
) -> Iterator[str]:
    """Say that there is nothing finished to compare with."""
    if arm.algorithm == reference:
        yield f"No comparison: {reference} is the only algorithm here, at {_name(arm)}."
    else:
        yield f"No verdict: there is no finished {reference} run to compare {_name(arm)} with."
    yield from gain_sentence(gain, endpoint)


def gain_sentence(gain: Estimate | None, endpoint: Endpoint) -> Iterator[str]:
    """State the difference to zero-shot."""
    if gain is not None and gain.mean is not None:
        shown = with_interval(gain.mean, gain.ci95)
        yield f"Against zero-shot its {named(endpoint.ood)} is {shown}."


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
    candidate, reference = _name(pair.candidate), _name(pair.reference)
    fresh = "fresh " if pair.candidate.confirms or pair.reference.confirms else ""
    n = len(pair.seeds)
    over = f"{n} {fresh}seed{'' if n == 1 else 's'}"
    ood, id_test = _difference(endpoint.ood, pair.ood), _difference(endpoint.id_metric, pair.id)
    test = _test(verdict, tests)
    numbers = f"{ood} over {over} ({test})"
    beside = f"; {id_test}" if id_test else ""
    margin = f"margin {100 * endpoint.id_margin:.3g} pp"
    match verdict.outcome:
        case "no_pairs":
            return f"No verdict: {candidate} and {reference} have no finished seed in common."
        case "not_measured":
            return _not_measured(pair)
        case "too_few_seeds":
            required = f"Inconclusive: {n} common {over.partition(' ')[2]}, {FEWEST_SEEDS} required"
            return f"{required}. {_so_far(pair, over, test)}."
        case "no_shifts":
            return (
                f"No verdict on robustness, as no shift was measured: {candidate} minus "
                f"{reference} over {over}, {id_test}."
            )
        case "tie":
            return f"A tie: {_tied(pair, over)}."
        case outcome if not endpoint.has_shifts:
            noun = NOUNS[kind_of(endpoint.metric)]
            claim = f"{candidate} is {outcome} than {reference} in distribution"
            if outcome == "no_difference":
                claim = f"No difference in {noun} is shown between {candidate} and {reference}"
            return f"{claim}: {id_test} over {over} ({test})."
        case "better":
            return f"{candidate} is better than {reference}: {numbers}; {_id_margin(pair, margin)}."
        case "trade_off":
            return (
                f"{candidate} is more robust than {reference} but not better: {numbers}; "
                f"{_id_margin(pair, margin, shown=False)}."
            )
        case "worse":
            return f"{candidate} is less robust than {reference}: {numbers}{beside}."
        case _:
            return (
                f"No difference in robustness is shown between {candidate} and {reference}: "
                f"{numbers}{beside}."
            )


def _id_margin(pair: Pair, margin: str, *, shown: bool = True) -> str:
    """`ID test is non-inferior (+0.10 pp [-0.20, +0.40], margin 0.5 pp)`."""
    claim = "is non-inferior" if shown else "is not shown to be non-inferior"
    if pair.id is None:
        return f"ID {NOUNS[pair.endpoint.by]} was not measured, so it {claim} ({margin})"
    numbers = with_interval(pair.id.mean, pair.id.ci95)
    return f"{named(pair.endpoint.id_metric)} {claim} ({numbers}, {margin})"


def _not_measured(pair: Pair) -> str:
    sides, metric = (pair.candidate, pair.reference), pair.endpoint.metric
    without = " and of ".join(_name(arm) for arm in sides if not arm.by_seed(metric))
    return (
        f"No verdict: {' and '.join(map(_name, sides))} cannot be judged by "
        f"{NOUNS[pair.endpoint.by]}, since the runs of {without} have no {metric}."
    )


def _so_far(pair: Pair, over: str, test: str) -> str:
    """What few seeds give, without a claim."""
    if pair.tested is not None and pair.is_tie:
        return f"So far a tie: {_tied(pair, over)}"
    endpoint = pair.endpoint
    differences = (_difference(endpoint.ood, pair.ood), _difference(endpoint.id_metric, pair.id))
    untested = "no shift was measured" if pair.tested is None else "no test below 3 seeds"
    names = f"{_name(pair.candidate)} minus {_name(pair.reference)}"
    return f"{names}: {'; '.join(filter(None, differences))} ({test or untested})"


def _tied(pair: Pair, over: str) -> str:
    metrics = {pair.endpoint.ood: pair.ood, pair.endpoint.id_metric: pair.id}
    equal = " and ".join(named(metric) for metric, test in metrics.items() if test is not None)
    names = f"{_name(pair.candidate)} and {_name(pair.reference)}"
    return f"{names} are equal in {equal}, in {'' if len(pair.seeds) == 1 else 'each of '}{over}"


def _difference(metric: str, test: PairedTest | None) -> str:
    return "" if test is None else f"{named(metric)} {with_interval(test.mean, test.ci95)}"


def _test(verdict: Verdict, tests: int) -> str:
    tested = verdict.pair.tested
    if tested is None or tested.p is None or verdict.p_holm is None:
        return ""
    holm = f", Holm over {tests}: {_p(verdict.p_holm)}" if tests > 1 else ""
    return f"paired t: {_p(tested.p)}{holm}"


def _curve(verdict: Verdict, above: Estimate) -> str:
    """Compare with the reference's WiSE-FT curve at equal ID accuracy."""
    endpoint, algorithm = verdict.pair.endpoint, verdict.pair.reference.algorithm
    rival, noun, n = f"{algorithm} + WiSE-FT", NOUNS[endpoint.by], len(above.values)
    if above.mean is None:
        out = sum(value is None for value in above.values)
        seeds = f"In all {n} seeds" if out == n > 1 else f"In {out} of {n} seeds"
        where = {"above": "exceeds", "below": "is below"}.get(verdict.beyond or "", "is outside of")
        text = f"{seeds} its ID {noun} {where} {algorithm}'s WiSE-FT curve; "
        text += "no equal-ID comparison is possible"
        if verdict.above_mean_curve is not None:
            text += (
                f" for each seed, that of the means is {with_interval(verdict.above_mean_curve)}"
            )
        return text + _dominated(verdict)
    text = (
        f"At equal ID {noun} its {named(endpoint.ood)} is {with_interval(above.mean, above.ci95)} "
    )
    text += f"against the curve of {rival}"
    if n < FEWEST_SEEDS or above.ci95 is None:
        return text + _dominated(verdict)
    if verdict.gains_over_curve:
        return f"{text}: a gain that {rival} does not give"
    if above.ci95.high < 0 or verdict.dominated_by is not None:
        return f"{text}{_dominated(verdict)}: no gain over {rival}"
    return f"{text}: no gain over {rival} is shown"


def _dominated(verdict: Verdict) -> str:
    point, algorithm = verdict.dominated_by, verdict.pair.reference.algorithm
    if point is None:
        return ""
    ends = {0.0: "zero-shot", 1.0: f"{algorithm} itself"}
    rival = ends.get(point.alpha, f"{algorithm} at alpha {point.alpha:g}")
    return f", and {rival} is at least as good on both"


def _merged(name: str, pair: Pair) -> str:
    labels = [arm.merge or "" for arm in (pair.candidate, pair.reference)]
    candidate, reference = (
        label if (alpha := merge_number(label)) is None else f"{alpha:g}" for label in labels
    )
    head = f"With {name} on both (alpha {candidate} and {reference}, chosen by the same rule)"
    if not pair.seeds:
        return f"{head} there is no seed in common."
    endpoint = pair.endpoint
    differences = (_difference(endpoint.ood, pair.ood), _difference(endpoint.id_metric, pair.id))
    return f"{head}: {', '.join(filter(None, differences))}; described, not tested."


def _name(arm: Arm) -> str:
    """The setting; a sentence says for itself on which seeds it is."""
    return arm.label.replace(CONFIRMED, "")


def _seeds(seeds: Sequence[int]) -> str:
    """`seed 0`, `seeds 5 to 9`, or `seeds 5, 7, 9`."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _signed(fraction: float) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(100 * fraction, 2) + 0.0:+.2f}"
