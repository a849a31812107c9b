"""A verdict in plain English: what was compared, by how much, how sure, and what that is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tracking.comparison.answer import Model, Strongest
from tracking.comparison.caveats import few
from tracking.comparison.effects import Association, Effect
from tracking.comparison.metrics import NOUNS, named
from tracking.comparison.runs import Arm, scalar_text
from tracking.comparison.selection import Confirmation
from tracking.comparison.spec import FEWEST_SEEDS, Endpoint, SelectionRule
from tracking.comparison.statistics import Estimate, Interval, PairedTest
from tracking.comparison.verdict import Pair, Verdict

NO_SHIFTS = "No shift was measured, so nothing is said of robustness."
NO_VALUE = "UNDECIDED: no run gave a value to select on."


def with_interval(value: float, ci95: Interval | None = None) -> str:
    """Format a difference in percentage points with its interval: `+1.80 pp [+1.49, +2.11]`."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    middle, *ends = [f"{round(100 * v, 2) + 0.0:+.2f}" for v in (value, *(ci95 or ()))]
    return f"{middle} pp [{', '.join(ends)}]" if ends else f"{middle} pp"


def strongest_line(strongest: Strongest, selected: Arm | None, endpoint: Endpoint) -> str:
    """Say which model is the strongest, and whether it is told apart from the next."""
    best, runner_up, verdict = strongest.model, strongest.runner_up, strongest.verdict
    is_selected = (
        selected is not None
        and selected.is_setting_of(best.arm)
        and selected.merge == best.arm.merge
    )
    described = "also the selected one" if is_selected else "described, not selected"
    head = f"the strongest here ({described}) is {best.arm.name}, with {_means(best, endpoint)}"
    if runner_up is None or verdict is None:
        return f"UNDECIDED: {head}; there is no other to compare it with."
    margin = f"{100 * endpoint.id_margin:.3g} pp"
    how = "is not told apart from it"
    match verdict.outcome:
        case "better":
            how = f"is told apart from it, and ID is kept within {margin}"
            if not endpoint.has_shifts:
                how = "is told apart from it"
        case "trade_off":
            how = "is told apart from it, but ID is not shown to be kept"
        case "tie":
            how = "is equal in every seed"
        case "no_difference" if verdict.state == "NO GAIN":
            how = f"is less than {margin} behind"
        case "no_spread":
            how += ": no spread over seeds, so nothing is tested"
        case "too_few_seeds":
            how += f": {_few_seeds(verdict)}"
    return (
        f"{verdict.state}: {head}; the next, {runner_up.arm.name} "
        f"({_means(runner_up, endpoint)}), {how}."
    )


def brief(verdict: Verdict, rule: SelectionRule) -> str:
    """Say in a line what came of one comparison, to a tenth of a point and without intervals."""
    pair, endpoint = verdict.pair, verdict.pair.endpoint
    margin = f"{100 * endpoint.id_margin:.3g} pp"
    numbers = ", ".join(
        f"{named(metric)} {100 * test.mean + 0.0:+.1f} pp"
        for metric in dict.fromkeys((endpoint.ood, endpoint.id_metric))
        if (test := pair.test(metric)) is not None
    )
    match verdict.outcome:
        case "better":
            how = f"ID is kept within {margin}" if endpoint.has_shifts else "in distribution"
        case "trade_off":
            how = f"ID is not shown to be kept within {margin}"
        case "worse":
            how = "less robust" if endpoint.has_shifts else "in distribution"
        case "tie":
            how = "equal in every seed"
        case "no_difference":
            how = f"a gain of {margin} is {'' if verdict.state == 'NO GAIN' else 'not '}excluded"
        case "no_spread":
            how = "no spread over seeds, so nothing is tested"
        case "incomplete":
            how = f"{len(pair.seeds)} of {len(verdict.seeds)} seeds have finished"
        case "too_few_seeds":
            how = _few_seeds(verdict)
        case "no_pairs":
            how = "no finished seed in common"
        case "no_shifts":
            how = "no shift was measured"
        case "not_measured":
            how = f"not measured by {NOUNS[endpoint.by]}"
    among = ""
    # Of zero-shot nothing is chosen, and the line before has said it of the candidate.
    if verdict.tried > 1 and not pair.reference.is_zero_shot:
        among = f"chosen among {verdict.tried} settings by {rule.metric} on these same seeds"
    said = "; ".join(filter(None, (numbers, how, among)))
    return f"{verdict.state}: {pair.candidate.name} against {pair.reference.name}: {said}."


def effect_line(effect: Effect, endpoint: Endpoint, rule: SelectionRule) -> str:
    """Say how the endpoint and ID move with one field, and which value is selected."""
    name = effect.parameter.rpartition(".")[2]
    low, high = (scalar_text(level.value) for level in (effect.low, effect.high))
    metric, n = named(endpoint.metric), len(effect.difference.differences)
    if effect.numeric:
        head = f"{name} {low} to {high}"
        sides = [_moves(effect, effect.difference, metric, endpoint, is_id=False)]
        if effect.id_difference is not None:
            id_name = named(endpoint.id_metric)
            sides.append(_moves(effect, effect.id_difference, id_name, endpoint, is_id=True))
        parts = [", ".join(sides)]
        if effect.peak is not None:
            parts.append(_peak(effect, metric))
    else:
        head, parts = name, [_best_and_worst(effect, metric)]
    if effect.settings > 1:
        parts.append(f"means over {effect.settings} settings of the other fields")
    if not effect.has_seeds:
        parts.append(f"{_seed_count(n)}, and a claim needs {FEWEST_SEEDS}")
    parts.append(f"{_place(effect)} is selected by {rule.metric}")
    return f"{head}: {'; '.join(parts)}."


def associations(found: Sequence[Association], endpoint: Endpoint) -> Iterator[str]:
    """Say what is known of fields that never vary alone."""
    metric = named(endpoint.metric)
    for it in found:
        name = it.parameter.rpartition(".")[2]
        if it.rank_correlation is None:
            yield (
                f"No comparison of {name}: no setting of the other fields was tried at all of its "
                "values."
            )
        else:
            interval = "" if it.ci95 is None else f" [{it.ci95.low:+.2f}, {it.ci95.high:+.2f}]"
            yield (
                f"{name} and {metric} have a rank correlation of {it.rank_correlation:+.2f}"
                f"{interval} over {it.settings} settings, which differ in other fields too: an "
                "association, not an effect."
            )


def strongest_statistics(strongest: Strongest, reference: Arm | None) -> Iterator[str]:
    """Say among how many models the strongest is, and by how much it is ahead of the next."""
    if strongest.verdict is None:
        return
    endpoint = strongest.verdict.pair.endpoint
    among = f"{strongest.models} models with all seeds"
    if reference is not None and endpoint.has_shifts:
        among = (
            f"the {strongest.eligible} of {among} whose {named(endpoint.id_metric)} is not below "
            f"that of {reference.name} by more than {100 * endpoint.id_margin:.3g} pp"
        )
    yield (
        f"The strongest has the highest {named(endpoint.metric)} among {among}. Against the next: "
        f"{_main(strongest.verdict)}"
    )


def same_models(arms: Sequence[Arm]) -> Iterator[str]:
    """Name the arms of which WiSE-FT is no model of its own."""
    if arms:
        names = few([arm.name for arm in arms])
        yield f"WiSE-FT chose alpha 1 for {names}: the same model, which has no row of its own."


def sentences(verdict: Verdict) -> Iterator[str]:
    """Give the statistics of one verdict; the first word is its state."""
    pair = verdict.pair
    yield f"{verdict.state}: {_main(verdict)}"
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


def no_reference(arm: Arm, reference: str) -> str:
    """Say that there is nothing finished to compare with."""
    if arm.algorithm == reference:
        return f"UNDECIDED: {reference} is the only algorithm here, at {arm.name}."
    return f"UNDECIDED: there is no finished {reference} run to compare {arm.name} with."


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


def _main(verdict: Verdict) -> str:
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
    return f"{head}: {', '.join(filter(None, _differences(pair)))}; described, not tested."


def _means(model: Model, endpoint: Endpoint) -> str:
    """Write `OOD mean 41.2 and ID test 57.7`."""
    numbers = {endpoint.metric: model.endpoint, endpoint.id_metric: model.id}
    return " and ".join(f"{named(name)} {_percent(it.mean)}" for name, it in numbers.items())


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}"


def _few_seeds(verdict: Verdict) -> str:
    n = len(verdict.pair.seeds)
    return f"{_seed_count(n)}, and a claim needs {FEWEST_SEEDS}"


def _seed_count(n: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}"


def _moves(
    effect: Effect, test: PairedTest, metric: str, endpoint: Endpoint, *, is_id: bool
) -> str:
    """Write `OOD mean rises from 38.8 to 39.2 (+0.40 pp [+0.10, +0.70])`."""
    ends = [level.id if is_id else level.endpoint for level in (effect.low, effect.high)]
    from_to = f"from {_percent(ends[0])} to {_percent(ends[1])}"
    ci, number = test.ci95, with_interval(test.mean, test.ci95)
    if ci is None or not effect.has_seeds:
        untested = "" if not effect.has_seeds or test.spreads else ", without spread: not tested"
        return f"{metric} goes {from_to} ({number}{untested})"
    if ci.low > 0 or ci.high < 0:
        return f"{metric} {'rises' if ci.low > 0 else 'falls'} {from_to} ({number})"
    margin = endpoint.id_margin
    if -margin < ci.low and ci.high < margin:
        return f"{metric} is unchanged within {100 * margin:.3g} pp ({number})"
    return f"{metric} shows no change beyond the noise of the seeds, {from_to} ({number})"


def _peak(effect: Effect, metric: str) -> str:
    """Say that the best value is none of the ends, and whether it is told apart from them."""
    peak, test = effect.peak, effect.above_ends
    assert peak is not None  # who calls this has looked
    assert test is not None
    interval = effect.above_ends_interval
    is_apart = effect.has_seeds and interval is not None and interval.low > 0
    end = max(effect.low, effect.high, key=lambda level: level.endpoint)
    number = f"{with_interval(test.mean, interval)}{_level(effect, interval)}"
    return (
        f"the highest {metric} is in between, {_percent(peak.endpoint)} at "
        f"{scalar_text(peak.value)}, {'' if is_apart else 'not '}told apart from "
        f"{'both ends' if is_apart else scalar_text(end.value)} ({number})"
    )


def _best_and_worst(effect: Effect, metric: str) -> str:
    """Compare the best and the worst category."""
    interval = effect.interval
    is_apart = effect.has_seeds and interval is not None and interval.low > 0
    best, worst = effect.high, effect.low
    number = f"{with_interval(effect.difference.mean, interval)}{_level(effect, interval)}"
    text = (
        f"{metric} is highest with {scalar_text(best.value)} ({_percent(best.endpoint)}) and "
        f"lowest with {scalar_text(worst.value)} ({_percent(worst.endpoint)}), "
        f"{'' if is_apart else 'not '}told apart ({number})"
    )
    if effect.id_difference is not None:
        test = effect.id_difference
        text += f", with ID {with_interval(test.mean, test.ci95)} between them"
    return text


def _level(effect: Effect, interval: Interval | None) -> str:
    """Write the level of an interval that is not of 95 %."""
    if interval is None or len(effect.levels) < 3:
        return ""
    return f" at {100 * effect.adjusted_level:.4g} %"


def _place(effect: Effect) -> str:
    """Write `0.3, the smallest,` of the selected value."""
    value = effect.selected
    text = scalar_text(value)
    ends = {scalar_text(effect.low.value): "smallest", scalar_text(effect.high.value): "largest"}
    return f"{text}, the {ends[text]}," if effect.numeric and text in ends else text


def _seeds(seeds: Sequence[int]) -> str:
    """Write `seed 0`, `seeds 5 to 9`, or `seeds 5, 7, 9`."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
