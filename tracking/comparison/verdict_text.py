"""A verdict in plain English: what was compared, by how much, how sure, and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence

from tracking.comparison.metrics import NOUNS, kind_of, named
from tracking.comparison.runs import CONFIRMED, Arm, merge_number
from tracking.comparison.selection import Confirmation
from tracking.comparison.spec import Terms
from tracking.comparison.statistics import Interval, Paired, Summary
from tracking.comparison.verdict import Difference, Finding

NO_SHIFTS = "No shift was measured, so nothing is said of robustness."


def points(value: float) -> str:
    """A difference of fractions in percentage points: `+1.80 pp`."""
    return f"{_signed(value)} pp"


def with_interval(value: float, ci95: Interval | None) -> str:
    """`+1.80 pp [+1.49, +2.11]`."""
    if ci95 is None:
        return points(value)
    return f"{points(value)} [{_signed(ci95.low)}, {_signed(ci95.high)}]"


def finding(found: Finding, terms: Terms, tests: int) -> tuple[str, ...]:
    """The sentences on one candidate; `tests` is how many Holm's adjustment covers."""
    unsaid = () if terms.has_shifts else (NO_SHIFTS,)
    # Where zero-shot is the reference, the first sentence holds that difference already.
    is_said = found.reference.is_zero_shot and found.difference.ood is not None
    return (
        _main(found, terms, tests),
        *unsaid,
        *(() if is_said else _gain(found.gain, terms)),
        *_curve(found, terms),
        *(_merged(name, difference) for name, difference in found.merged.items()),
    )


def over_images(found: Finding) -> tuple[str, ...]:
    """How much other images would change the difference, where that was asked for."""
    difference = found.difference
    pairs = {difference.ood_metric: difference.ood, difference.id_metric: difference.id}
    told = [
        f"{named(metric)} {with_interval(pair.mean, ends)}"
        for metric, pair in pairs.items()
        if pair is not None and (ends := found.ci95_images.get(metric)) is not None
    ]
    if not told:
        return ()
    of = f"{_name(found.candidate)} minus {_name(found.reference)}"
    return (f"Over images instead of seeds (bootstrap, these weights): {of}, {'; '.join(told)}.",)


def no_reference(arm: Arm, reference: str, gain: Summary | None, terms: Terms) -> tuple[str, ...]:
    """When there is nothing finished to compare with."""
    if arm.algorithm == reference:
        first = f"No comparison: {reference} is the only algorithm here, at {_name(arm)}."
    else:
        first = f"No verdict: there is no finished {reference} run to compare {_name(arm)} with."
    return (first, *_gain(gain, terms))


def nothing_done() -> tuple[str, ...]:
    """When no setting has a value."""
    return ("No verdict: no run gave a value to select on.",)


def confirmed(seen: Confirmation, chosen_on: Sequence[int]) -> tuple[str, ...]:
    """What the verdict is of, where fresh seeds were asked for."""
    if not seen.asked:
        return ()
    if seen.is_complete:
        fresh = f"judged on {_listed(seen.seeds)}, which no choice has seen"
        return (f"The settings were chosen on {_listed(chosen_on)} and {fresh}.",)
    return (
        f"Not confirmed yet: {seen.done} of {seen.asked} runs on {_listed(seen.seeds)} are "
        "done, so this is judged on the seeds that the settings were chosen on.",
    )


def _main(found: Finding, terms: Terms, tests: int) -> str:
    ours, theirs = _name(found.candidate), _name(found.reference)
    difference, n = found.difference, len(found.difference.seeds)
    ood, identity, test = _ood(difference), _id(difference), _test(found, terms, tests)
    fresh = "fresh " if found.candidate.confirms or found.reference.confirms else ""
    seeds = f"{n} {fresh}seed{'' if n == 1 else 's'}"
    if not terms.has_shifts and found.outcome in ("better", "worse", "no_difference"):
        return f"{_in_distribution(found)}: {identity} over {seeds} ({test})."
    beside = f"; {identity}" if identity else ""
    match found.outcome:
        case "no_pairs" | "not_measured":
            return _not_judged(found, terms)
        case "too_few_seeds":
            had = f"{n} {fresh}".rstrip()
            head = f"too few seeds ({had}, a verdict needs {terms.fewest_seeds})"
            return f"{head}: {_so_far(found, terms, seeds, test)}."
        case "no_shifts":
            return (
                f"No verdict on robustness, as no shift was measured: {ours} minus {theirs} over "
                f"{seeds}, {identity}."
            )
        case "better":
            return (
                f"{ours} is better than {theirs}: {ood} over {seeds} ({test}), and {identity}, "
                f"not worse than the margin of {_percent(terms.id_margin)} pp."
            )
        case "trade_off":
            head = (
                f"{ours} is more robust than {theirs} but not better: {ood} over {seeds} ({test})"
            )
            unshown = f"not shown to stay within the margin of {_percent(terms.id_margin)} pp"
            if not identity:
                noun = NOUNS[terms.by]
                return f"{head}; ID {noun} was not measured, so it is {unshown}."
            return f"{head}, while {identity} is {unshown}."
        case "worse":
            return f"{ours} is less robust than {theirs}: {ood} over {seeds} ({test}){beside}."
        case "tie":
            return f"A tie: {_tied(found, seeds)}."
        case "no_difference":
            return (
                f"No difference in robustness is shown between {ours} and {theirs}: {ood} over "
                f"{seeds} ({test}){beside}."
            )


def _not_judged(found: Finding, terms: Terms) -> str:
    """Why two settings cannot be compared at all."""
    sides = (found.candidate, found.reference)
    ours, theirs = map(_name, sides)
    if found.outcome == "no_pairs":
        return f"No verdict: {ours} and {theirs} have no finished seed in common."
    without = " and of ".join(_name(arm) for arm in sides if not arm.by_seed(terms.endpoint))
    return (
        f"No verdict: {ours} and {theirs} cannot be judged by {NOUNS[terms.by]}, since the runs "
        f"of {without} have no {terms.endpoint}."
    )


def _in_distribution(found: Finding) -> str:
    """What the ID test shows where it is all there is."""
    ours, theirs = _name(found.candidate), _name(found.reference)
    if found.outcome == "no_difference":
        noun = NOUNS[kind_of(found.endpoint)]
        return f"No difference in {noun} is shown between {ours} and {theirs}"
    worse = found.outcome == "worse"
    return f"{ours} is {'worse' if worse else 'better'} than {theirs} in distribution"


def _so_far(found: Finding, terms: Terms, seeds: str, test: str) -> str:
    """What few seeds give, without a claim."""
    difference = found.difference
    tested = difference.on(terms.endpoint)
    if tested is not None and difference.is_tie:
        return f"so far a tie, {_tied(found, seeds)}"
    numbers = "; ".join(part for part in (_ood(difference), _id(difference)) if part)
    untested = "no shift was measured" if tested is None else "no test below 3 seeds"
    names = f"{_name(found.candidate)} minus {_name(found.reference)}"
    return f"{names}, {numbers} ({test or untested})"


def _tied(found: Finding, seeds: str) -> str:
    difference = found.difference
    pairs = {
        named(difference.ood_metric): difference.ood,
        named(difference.id_metric): difference.id,
    }
    equal = " and ".join(name for name, pair in pairs.items() if pair is not None)
    names = f"{_name(found.candidate)} and {_name(found.reference)}"
    return f"{names} are equal in {equal}, in {'' if seeds[:2] == '1 ' else 'each of '}{seeds}"


def _ood(difference: Difference) -> str:
    return _named(named(difference.ood_metric), difference.ood)


def _id(difference: Difference) -> str:
    return _named(named(difference.id_metric), difference.id)


def _named(name: str, pair: Paired | None) -> str:
    return "" if pair is None else f"{name} {with_interval(pair.mean, pair.ci95)}"


def _test(found: Finding, terms: Terms, tests: int) -> str:
    pair = found.difference.on(terms.endpoint)
    if pair is None or pair.p is None or found.p_holm is None:
        return ""
    holm = f", Holm over {tests}: {_p(found.p_holm)}" if tests > 1 else ""
    text = f"paired t: {_p(pair.p)}{holm}; sign-flip: {_p(pair.p_sign_flip)}"
    ranked = pair.p_signed_rank
    return text if ranked is None else f"{text}; signed-rank: {_p(ranked)}"


def _gain(gain: Summary | None, terms: Terms) -> tuple[str, ...]:
    if gain is None or gain.mean is None:
        return ()
    return (f"Against zero-shot its {named(terms.ood)} is {with_interval(gain.mean, gain.ci95)}.",)


def _curve(found: Finding, terms: Terms) -> tuple[str, ...]:
    above, rival = found.above_curve, f"{found.reference.algorithm} + WiSE-FT"
    noun = NOUNS[terms.by]
    if above is None:
        return ()
    inside = [value for value in above.values if value is not None]
    if above.mean is None:
        out, n = len(above.values) - len(inside), len(above.values)
        text = f"In {out} of {n} seeds its ID {noun} lies {found.beyond} the whole WiSE-FT curve "
        text += f"of {found.reference.algorithm}, so there is no distance at equal ID {noun}"
        if found.above_mean_curve is not None:
            text += f" for each seed; that of the means is {points(found.above_mean_curve)}"
        return (text + _dominated(found) + ".",)
    text = f"At equal ID {noun} its {named(terms.ood)} is {with_interval(above.mean, above.ci95)} "
    text += f"against the curve of {rival}"
    if len(inside) < terms.fewest_seeds or above.ci95 is None:
        return (text + _dominated(found) + ".",)
    if found.gains_over_curve:
        return (f"{text}: a gain that {rival} does not give.",)
    if above.ci95.high < 0 or found.dominated_by is not None:
        return (f"{text}{_dominated(found)}: no gain over {rival}.",)
    return (f"{text}: no gain over {rival} is shown.",)


def _dominated(found: Finding) -> str:
    point = found.dominated_by
    if point is None:
        return ""
    ends = {0.0: "zero-shot", 1.0: f"{found.reference.algorithm} itself"}
    rival = ends.get(point.alpha, f"{found.reference.algorithm} at alpha {point.alpha:g}")
    return f", and {rival} is at least as good on both"


def _merged(name: str, difference: Difference) -> str:
    ours, theirs = (_number(arm) for arm in (difference.candidate, difference.reference))
    head = f"With {name} on both (alpha {ours} and {theirs}, chosen by the same rule)"
    if not difference.seeds:
        return f"{head} there is no seed in common."
    numbers = [part for part in (_ood(difference), _id(difference)) if part]
    return f"{head}: {', '.join(numbers)}; described, not tested."


def joined(sentences: Sequence[str]) -> str:
    """One paragraph."""
    return " ".join(sentences)


def few(parts: Sequence[str], separator: str = ", ") -> str:
    """At most three of them, and how many more there are."""
    rest = len(parts) - 3
    shown = separator.join(parts[:3])
    return f"{shown}{separator}{rest} more" if rest > 0 else shown


def _name(arm: Arm) -> str:
    """The setting; a sentence says for itself on which seeds it is."""
    return arm.label.replace(CONFIRMED, "")


def _listed(seeds: Sequence[int]) -> str:
    """`seed 0`, `seeds 5 to 9`, or `seeds 5, 7, 9`."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def _number(arm: Arm) -> str:
    number = None if arm.merge is None else merge_number(arm.merge)
    return f"{arm.merge}" if number is None else f"{number:g}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _signed(fraction: float) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(100 * fraction, 2) + 0.0:+.2f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g}"
