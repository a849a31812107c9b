"""A verdict in plain English: what was compared, by how much, how sure, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from carft_sweep.tracking.comparison.caveats import few
from carft_sweep.tracking.comparison.metrics import NOUNS, named
from carft_sweep.tracking.comparison.runs import Arm
from carft_sweep.tracking.comparison.selection import Confirmation
from carft_sweep.tracking.comparison.spec import FEWEST_SEEDS, Endpoint
from carft_sweep.tracking.comparison.statistics import Estimate, Interval
from carft_sweep.tracking.comparison.verdict import Pair, Verdict

NO_SHIFTS = "No shift was measured, so nothing is said of robustness."


def with_interval(value: float, ci95: Interval | None = None) -> str:
    """Format a difference in percentage points with its interval: `+1.80 pp [+1.49, +2.11]`."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    middle, *ends = [f"{round(100 * v, 2) + 0.0:+.2f}" for v in (value, *(ci95 or ()))]
    return f"{middle} pp [{', '.join(ends)}]" if ends else f"{middle} pp"


def same_models(arms: Sequence[Arm]) -> Iterator[str]:
    """Name the arms of which WiSE-FT is no model of its own."""
    if arms:
        names = few([arm.name for arm in arms])
        yield f"WiSE-FT chose alpha 1 for {names}: the same model, which has no row of its own."


def sentences(verdict: Verdict) -> Iterator[str]:
    """Give the statistics of one verdict; the first word is its state."""
    pair = verdict.pair
    yield f"{verdict.state}: {describe(verdict)}"
    if not pair.endpoint.has_shifts:
        yield NO_SHIFTS
    # Where zero-shot is the reference, the first sentence holds that difference already.
    if not (pair.reference.is_zero_shot and pair.ood is not None):
        yield from gain_sentence(verdict.gain, pair.endpoint)
    if verdict.above_curve is not None:
        yield f"{_curve(verdict, verdict.above_curve)}."
    yield from map(_merged, verdict.merged.values())


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


def describe(verdict: Verdict) -> str:
    """Describe the outcome of one comparison with its numbers; its state goes before."""
    pair, endpoint = verdict.pair, verdict.pair.endpoint
    sides, noun, n = (pair.candidate, pair.reference), NOUNS[endpoint.by], len(pair.seeds)
    candidate, reference = (arm.name for arm in sides)
    minus = f"{candidate} minus {reference}"
    seeds = f"{'fresh ' if any(a.confirms for a in sides) else ''}seed{'' if n == 1 else 's'}"
    over, margin = f"{n} {seeds}", f"{100 * endpoint.id_margin:.3g} pp"
    ood, id_test = _differences(pair)
    both = "; ".join(filter(None, (ood, id_test)))
    so_far = f"So far {minus}, over {over}: {both}"
    if pair.tested is not None and pair.is_tie:
        so_far = f"So far {_tied(pair, over)}"
    match verdict.outcome:
        case "no_pairs":
            return f"{candidate} and {reference} have no finished seed in common."
        case "not_measured":
            without = " and of ".join(a.name for a in sides if not a.values(endpoint.metric))
            return (
                f"{candidate} and {reference} cannot be judged by {noun}, since the runs of "
                f"{without} have no {endpoint.metric}."
            )
        case "incomplete":
            return (
                f"{n} of {len(verdict.seeds)} seeds have finished with all values for both "
                f"{candidate} and {reference}, and a claim needs all. {so_far}."
            )
        case "too_few_seeds":
            return (
                f"{candidate} and {reference} have {n} {seeds} in common, and a claim needs "
                f"{FEWEST_SEEDS}. {so_far}."
            )
        case "no_shifts":
            return f"no shift was measured. {minus} over {over}: {both}."
        case "tie":
            return f"{_tied(pair, over)}."
        case "no_spread":
            return (
                f"over {over} the differences do not spread by more than one image, so nothing "
                f"is tested. {minus}: {both}."
            )
        case outcome if not endpoint.has_shifts:
            claim = f"{candidate} is {outcome} than {reference} in distribution"
            if outcome == "no_difference":
                claim = f"no difference in {noun} is shown between {candidate} and {reference}"
            return f"{claim}: {id_test} over {over}{_p(verdict)}."
        case "better":
            return (
                f"{candidate} is better than {reference}: {ood}, and ID is kept within {margin} "
                f"({id_test}), over {over}{_p(verdict)}."
            )
        case "trade_off":
            id_claim = f"ID is not shown to be kept within {margin} ({id_test})"
            if pair.id is None:
                id_claim = f"ID {noun} was not measured"
            elif not pair.id.spreads:
                id_claim = (
                    f"ID does not spread by more than one image and is not tested ({id_test})"
                )
            return (
                f"{candidate} is more robust than {reference} but not better: {ood}; {id_claim}; "
                f"over {over}{_p(verdict)}."
            )
        case "worse":
            return f"{candidate} is less robust than {reference}: {both}, over {over}{_p(verdict)}."
        case _:
            return (
                f"no difference in robustness is shown between {candidate} and {reference}: "
                f"{both}, over {over}{_p(verdict)}."
            )


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


def _p(verdict: Verdict) -> str:
    """Write the p that decided, and what it does not allow for, in parentheses."""
    p = verdict.p_better if verdict.outcome == "better" else verdict.p_different
    if p is None:
        return ""
    parts = [f"paired t, {'p < 0.001' if p < 0.001 else f'p = {p:.3f}'}"]
    if verdict.compared > 1:
        parts[0] += f" by Holm's rule over {verdict.compared}"
    if verdict.tried > 1:
        parts.append(
            f"chosen among {verdict.tried} settings on these same seeds, which p does not allow for"
        )
    return f" ({'; '.join(parts)})"


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
        where = {
            "above": f"exceeds {algorithm}'s WiSE-FT curve",
            "below": f"is below {algorithm}'s WiSE-FT curve",
            "between": f"is where {algorithm}'s WiSE-FT curve has too few alphas to be bounded",
        }.get(verdict.beyond or "", f"is outside of {algorithm}'s WiSE-FT curve")
        return f"{seeds} its ID {noun} {where}; no equal-ID comparison is possible{dominated}"
    number = with_interval(above.mean, above.ci95)
    text = (
        f"At equal ID {noun} its {named(endpoint.ood)} is {number} against the most that {rival} "
    )
    text += "may give"
    if n < FEWEST_SEEDS or above.ci95 is None:
        return text + dominated
    if verdict.gains_over_curve:
        return f"{text}: a gain that {rival} does not give"
    if above.ci95.high < 0 or dominated:
        return f"{text}{dominated}: no gain over {rival}"
    return f"{text}: no gain over {rival} is shown"


def _merged(pair: Pair) -> str:
    label = pair.candidate.merge or ""
    head = f"With {label} on both"
    if not pair.seeds:
        return f"{head} there is no seed in common."
    return f"{head}: {', '.join(filter(None, _differences(pair)))}; not part of the verdict."


def _seeds(seeds: Sequence[int]) -> str:
    """Write `seed 0`, `seeds 5 to 9`, or `seeds 5, 7, 9`."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
