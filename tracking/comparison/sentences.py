"""What a comparison says, in plain English: each statement once, with the interval that decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from carft_sweep.tracking.comparison.curves import CurvePair, CurveVerdict
from carft_sweep.tracking.comparison.effects import Effect
from carft_sweep.tracking.comparison.metrics import NOUNS, named
from carft_sweep.tracking.comparison.power import MOST_SEEDS
from carft_sweep.tracking.comparison.runs import Arm, Scalar, distinct_texts, last_part, value_key
from carft_sweep.tracking.comparison.selection import Confirmation
from carft_sweep.tracking.comparison.spec import SEEDS_FOR_CLAIM, Endpoint, SelectionRule
from carft_sweep.tracking.comparison.statistics import Interval, PairedTest
from carft_sweep.tracking.comparison.verdict import Pair, Strongest, Verdict
from carft_sweep.tracking.errors import counted


@dataclass(frozen=True)
class Answer:
    """The main statements of a comparison: sentences, and the verdicts that they are made from."""

    lines: tuple[str, ...]
    """A sentence each: the candidate's curve against the reference's, the candidate against the
    reference, the strongest model, and what each varied field does."""
    curve: CurveVerdict | None = None
    """Verdict on candidate + WiSE-FT against reference + WiSE-FT; None without merges."""
    strongest: Strongest | None = None
    verdict: Verdict | None = None
    """Verdict on the candidate against the reference."""
    effects: tuple[Effect, ...] = ()


NO_VALUE = "UNDECIDED: no trial has ended with a value to select on."
NO_SHIFTS = "No shift was measured, so nothing is said of robustness."


def with_interval(value: float, ends: Interval | None = None) -> str:
    """Return a difference, a fraction, in percentage points: `+1.80 pp [+1.49, +2.11]`."""
    middle, *sides = [f"{100 * v:+z.2f}" for v in (value, *(ends or ()))]
    return f"{middle} pp [{', '.join(sides)}]" if sides else f"{middle} pp"


def points(fraction: float) -> str:
    """Return a margin in percentage points: `0.5 pp`."""
    return f"{100 * fraction:.3g} pp"


def no_reference(arm: Arm, reference: str) -> str:
    """Return the sentence that no finished reference exists to compare an arm with."""
    if arm.algorithm == reference:
        return f"UNDECIDED: {reference} is the only algorithm here, at {arm.name}."
    return (
        f"UNDECIDED: there is no finished {reference} run to compare {arm.name} with; --reference "
        "names another algorithm."
    )


def claim(verdict: Verdict) -> str:
    """Return the outcome of a comparison in a sentence: the differences and how sure they are."""
    pair, endpoint = verdict.pair, verdict.pair.endpoint
    parts = [
        f"{named(metric)} {with_interval(test.mean, verdict.interval(metric))}"
        for metric in dict.fromkeys((endpoint.ood, endpoint.id_metric))
        if verdict.outcome != "tie" and (test := pair.test(metric)) is not None
    ]
    text = "; ".join(filter(None, (", ".join(parts), _why_no_claim(verdict))))
    p = {"better": verdict.p_better, "worse": verdict.p_worse}.get(
        verdict.outcome, verdict.p_different
    )
    sides = f"{pair.candidate.name} against {pair.reference.name}"
    return f"{verdict.state}: {sides}: {text}{_certainty(verdict, pair.tested, p)}."


def claim_details(verdict: Verdict) -> Iterator[str]:
    """Yield sentences on what else is shown, the claim's scope, and the power of the test."""
    pair = verdict.pair
    if pair.tested is None or verdict.outcome in _WITHOUT_P:
        return
    parts = [
        _what_is_shown(verdict),
        _scope(pair.tested, pair),
        _power(verdict, pair.endpoint.margin),
    ]
    text = "; ".join(filter(None, parts))
    yield f"{pair.candidate.name} against {pair.reference.name}: {text}."


def short_answer(answer: Answer) -> str:
    """Return both claims (curves, unmerged) for a table cell: states, differences, intervals."""
    parts = []
    if (curve := answer.curve) is not None:
        difference, text = curve.pair.difference, str(curve.state)
        if difference is not None:
            text += f": + WiSE-FT {with_interval(difference, curve.interval)}"
        parts.append(text)
    if (verdict := answer.verdict) is not None:
        metric, test, text = verdict.pair.endpoint.metric, verdict.pair.tested, str(verdict.state)
        if test is not None:
            text += f": {named(metric)} {with_interval(test.mean, verdict.interval(metric))}"
        parts.append(text)
    return "; ".join(parts)


def _why_no_claim(verdict: Verdict) -> str:
    """Return why a verdict claims nothing, such as missing seeds or a tie."""
    pair, endpoint = verdict.pair, verdict.pair.endpoint
    match verdict.outcome:
        case "tie":
            tests = {endpoint.ood: pair.ood, endpoint.id_metric: pair.id}
            equal = " and ".join(named(name) for name, test in tests.items() if test is not None)
            return f"the same {equal} in every seed"
        case "no_spread":
            return _NO_SPREAD
        case "incomplete":
            return f"{len(pair.seeds)} of {len(verdict.seeds)} seeds have finished on both sides"
        case "too_few_seeds":
            return _too_few(len(pair.seeds))
        case "no_pairs":
            return "no finished seed in common"
        case "no_shifts":
            return "no shift was measured"
        case "not_measured":
            sides = (pair.candidate, pair.reference)
            without = " and of ".join(a.name for a in sides if not a.values(endpoint.metric))
            noun = NOUNS[endpoint.by]
            return f"not judged by {noun}: the runs of {without} have no {endpoint.metric}"
    return ""


def _what_is_shown(verdict: Verdict) -> str:
    """Return what a verdict shows of ID accuracy, or that a gain is not shown."""
    pair, endpoint = verdict.pair, verdict.pair.endpoint
    margin, of_id = points(endpoint.id_margin), verdict.interval(endpoint.id_metric)
    match verdict.outcome:
        case "better":
            return f"ID is kept within {margin}" if endpoint.has_shifts else ""
        case "more_robust" if verdict.id_state == "not tested":
            measured = "its difference does not spread over seeds by more than one image"
            return f"ID is not tested: {measured if pair.id is not None else 'it was not measured'}"
        case "more_robust":
            return f"an ID loss above {margin} {_not_excluded(verdict, verdict.id_state != 'open')}"
        case "trade_off" if of_id is not None and of_id.high < 0:
            more = f" more than {margin}" if of_id.high < -endpoint.id_margin else ""
            return f"OOD gains and ID loses{more}"
        case "trade_off":
            return "OOD loses and ID gains"
        case "less_robust":
            by_interval = of_id is not None and of_id.high < endpoint.id_margin
            return f"an ID gain above {margin} {_not_excluded(verdict, by_interval)}"
        case "worse":
            return f"ID gains less than {margin}" if endpoint.has_shifts else ""
        case "no_difference":
            name = "an OOD gain" if endpoint.has_shifts else "a gain"
            excluded = "" if verdict.state == "NO GAIN" else "not "
            return f"{name} of {points(endpoint.margin)} is {excluded}excluded"
    return ""


def _not_excluded(verdict: Verdict, by_interval: bool) -> str:
    if by_interval:
        return f"is excluded by this interval, but not by Holm's rule over {verdict.compared}"
    return "is not excluded"


def curve_claim(verdict: CurveVerdict) -> str:
    """Return which WiSE-FT curve is higher at equal ID, by how much, and how sure that is."""
    pair, endpoint, is_worse = verdict.pair, verdict.pair.endpoint, verdict.state == "WORSE CURVE"
    sides = [pair.candidate.name, pair.reference.name]
    both = ", both with WiSE-FT"
    if pair.is_point:
        both, sides[1] = "", f"{sides[1]} + WiSE-FT"
    verb = "is not shown to beat"
    if verdict.state == "NO GAIN":
        verb = f"gains less than {points(endpoint.ood_margin)} over"
    elif verdict.state != "UNDECIDED":
        verb = "beats"
    of_id = named(endpoint.id_metric)
    parts = []
    if pair.gain is not None:
        if pair.difference is None:  # nothing bounds the candidate's curve from above
            number = f"at least {with_interval(pair.gain.mean, pair.gain.interval(verdict.level))}"
        else:
            sign = -1 if is_worse else 1
            ends = verdict.interval and Interval(*sorted(sign * end for end in verdict.interval))
            number = with_interval(sign * pair.difference, ends)
        parts.append(f"{named(endpoint.ood)} {number} at equal {of_id}")
    match verdict.outcome:
        case "no_difference" if verdict.state == "UNDECIDED" and pair.slack >= endpoint.ood_margin:
            parts.append(f"the measured alphas alone leave ±{100 * pair.slack:.2f} pp open")
        case "no_range" if pair.common_range is None:
            parts.append(f"the two curves have no {of_id} in common")
        case "no_range":
            parts.append("too few alphas are measured to bound the curves")
        case "incomplete":
            parts.append(f"{len(pair.seeds)} of {len(verdict.seeds)} seeds have both curves")
        case "too_few_seeds":
            parts.append(_too_few(len(pair.seeds)))
        case "no_spread":
            parts.append(_NO_SPREAD)
    one, other = reversed(sides) if is_worse else sides
    p = {"better_curve": verdict.p_better, "worse_curve": verdict.p_worse}.get(verdict.outcome)
    certainty = _certainty(verdict, pair.gain, p)
    return f"{verdict.state}: {one} {verb} {other}{both}: {'; '.join(parts)}{certainty}."


def curve_details(verdict: CurveVerdict) -> Iterator[str]:
    """Yield sentences on how curves are compared, the claim's scope, and the power of the test."""
    pair, endpoint, common = verdict.pair, verdict.pair.endpoint, verdict.pair.common_range
    if pair.gain is None or common is None:
        return
    low, high = (f"{100 * end:.1f}" for end in common)
    place = f"at {low} %" if pair.is_point else f"mean over {low} to {high} %"
    parts = [
        f"each curve drawn straight between its measured alphas, {place} "
        f"{named(endpoint.id_metric)}; the interval also holds what they leave open"
    ]
    if verdict.state == "UNDECIDED" and verdict.outcome == "no_difference":
        parts.append(f"a gain of {points(endpoint.ood_margin)} is not excluded")
    parts += [_scope(pair.gain, pair), _power(verdict, endpoint.ood_margin)]
    sides = f"{pair.candidate.name} against {pair.reference.name}, WiSE-FT curves"
    yield f"{sides}: {'; '.join(filter(None, parts))}."


_NO_SPREAD = "all seeds differ by the same to within one test image, which no test can judge"


def _scope(test: PairedTest | None, pair: Pair | CurvePair) -> str:
    """Return the scope of a claim: other seeds, and other test images where these are known."""
    is_fresh = pair.candidate.confirms or pair.reference.confirms
    count = counted(len(pair.seeds), "fresh seed" if is_fresh else "seed")
    if test is None or test.images is None:
        return f"over {count}"
    of = "" if test.images.units == test.images.images else "groups of "
    return f"for other seeds and other test images ({count}, {test.images.units:,} {of}images)"


def _power(verdict: Verdict | CurveVerdict, margin: float) -> str:
    """Return, for an undecided verdict, the difference that the test could show and the seeds that
    the margin needs; else an empty text."""
    power, seeds = verdict.power, len(verdict.pair.seeds)
    is_open = verdict.state == "UNDECIDED" and verdict.outcome == "no_difference"
    if power is None or not is_open:
        return ""
    shown = f"{100 * power.smallest_difference(seeds):.2f} pp"
    needed = power.seeds_for(margin, seeds)
    text = f"80 % of such sweeps find a difference of {shown}"
    if needed is not None:
        return f"{text}, with {needed} seeds one of {points(margin)}"
    if power.slack >= margin:
        return f"{text}; one of {points(margin)} takes more alphas"
    if power.images is None:
        return f"{text}, with {MOST_SEEDS} seeds none of {points(margin)}"
    return f"{text}; one of {points(margin)} takes more test images"


def _certainty(verdict: Verdict | CurveVerdict, test: PairedTest | None, p: float | None) -> str:
    """Return in brackets a claim's scope, the p that decided, and the number of settings tried."""
    parts = []
    if test is not None and test.images is None:
        parts.append("on these test images")
    if verdict.p_better is not None and verdict.outcome not in _WITHOUT_P:
        words = [] if p is None else ["p < 0.001" if p < 0.001 else f"p = {p:.3f}"]
        if verdict.compared > 1:
            level = f"intervals of {100 * verdict.level:.3g} %"
            words.append(f"by Holm's rule over {verdict.compared}, {level}")
        parts += [" ".join(words)] if words else []
    if test is not None and verdict.tried > 1:
        parts.append(f"chosen among {verdict.tried} settings on these seeds")
    return f" ({'; '.join(parts)})" if parts else ""


_WITHOUT_P = ("incomplete", "too_few_seeds", "no_shifts", "no_pairs", "not_measured", "tie")


def confirmed(confirmation: Confirmation, selected_on: Sequence[int]) -> Iterator[str]:
    """Yield a sentence on the seeds of the verdict, where a confirmation was required."""
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


def strongest_line(
    strongest: Strongest, selected: Arm | None, reference: Arm | None, endpoint: Endpoint
) -> str:
    """Return a sentence on the measured model with the highest endpoint that keeps ID."""
    best = strongest.arm
    metric, of_id = named(endpoint.metric), named(endpoint.id_metric)
    among = f"{strongest.models} models"
    if reference is not None and endpoint.has_shifts:
        among = (
            f"the {strongest.eligible} of {among} that keep the {of_id} of {reference.name} "
            f"within {points(endpoint.id_margin)}"
        )
    metrics = dict.fromkeys((endpoint.metric, endpoint.id_metric))
    numbers = ", ".join(f"{named(name)} {_percent(best.mean(name))}" for name in metrics)
    parts = [f"{best.name} ({numbers}), picked by test data"]
    if selected is not None:
        is_selected = selected.is_setting_of(best) and selected.merge == best.merge
        parts[0] += f", and {'also' if is_selected else 'not'} the selected one"
    if strongest.verdict is not None:
        pair = strongest.verdict.pair
        if pair.is_tie:
            parts.append(f"equal in every seed to the next, {pair.reference.name}")
        elif (test := pair.tested) is not None:
            number = with_interval(test.mean, test.ci95)
            parts.append(f"{number} against the next, {pair.reference.name}")
    return f"Highest {metric} of {among}: {'; '.join(parts)}."


def effect_line(effect: Effect, endpoint: Endpoint, rule: SelectionRule) -> str:
    """Return a sentence on how endpoint and ID change with a field, and which value is selected."""
    metric, head = named(endpoint.metric), last_part(effect.parameter)
    over = counted(len(effect.difference.differences), "seed")
    if effect.settings > 1:
        over += f", means over {effect.settings} settings of the other fields"
    number = with_interval(effect.difference.mean, effect.interval)
    if effect.interval != effect.difference.ci95:
        number += f" (interval of {100 * effect.level:.4g} %)"
    if effect.numeric:
        head += f" {_value(effect, effect.low.value)} to {_value(effect, effect.high.value)}"
        low, high = effect.low, effect.high
        moves = _moves(
            effect, effect.difference, metric, (low.endpoint, high.endpoint), endpoint.margin
        )
        parts = [f"{moves}, {number}"]
        if (test := effect.id_difference) is not None:
            of_id = named(endpoint.id_metric)
            moves = _moves(effect, test, of_id, (low.id, high.id), endpoint.id_margin)
            parts.append(f"{moves}, {with_interval(test.mean, test.ci95)}")
    else:
        best = f"{_value(effect, effect.high.value)} ({_percent(effect.high.endpoint)})"
        worst = f"{_value(effect, effect.low.value)} ({_percent(effect.low.endpoint)})"
        parts = [f"{metric} is highest with {best} and lowest with {worst}, {number}"]
        if (test := effect.id_difference) is not None:
            parts.append(f"{named(endpoint.id_metric)} {with_interval(test.mean, test.ci95)}")
    images = "on these test images, " if effect.difference.images is None else ""
    parts.append(f"{images}over {over}")
    if not effect.has_seeds:
        parts.append(f"a claim needs {SEEDS_FOR_CLAIM} seeds")
    parts.append(f"{_selected(effect)} is selected by {rule.metric}")
    return f"{head}: {'; '.join(parts)}."


def not_compared(parameters: Sequence[str]) -> Iterator[str]:
    """Yield a sentence with the fields that never vary alone, where there are any."""
    if parameters:
        values = "all of its values" if len(parameters) == 1 else "all values of one of them"
        names = " or ".join(map(last_part, parameters))
        yield f"No effect of {names}: no trials that share the other fields have {values}."


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}"


def _too_few(n: int) -> str:
    return f"{counted(n, 'seed')}, and a claim needs {SEEDS_FOR_CLAIM}"


def _seeds(seeds: Sequence[int]) -> str:
    """Return `seed 0`, `seeds 5 to 9`, or `seeds 5, 7, 9`."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def _value(effect: Effect, value: Scalar) -> str:
    """Return a value of the effect's field as text that tells it from the field's other values."""
    values = (*(level.value for level in effect.levels), effect.selected)
    return distinct_texts(values)[value_key(value)]


def _moves(
    effect: Effect,
    test: PairedTest,
    metric: str,
    ends: tuple[float | None, float | None],
    margin: float,
) -> str:
    """Return how `metric` changes from the field's lowest to its highest value, where its means are
    `ends`: it rises or falls by `test`, is unchanged within `margin`, or shows no change."""
    low, high = map(_percent, ends)
    ci = test.ci95
    if ci is None or not effect.has_seeds:
        return f"{metric} goes from {low} to {high}"
    if ci.low > 0 or ci.high < 0:
        return f"{metric} {'rises' if ci.low > 0 else 'falls'} from {low} to {high}"
    if -margin < ci.low and ci.high < margin:
        return f"{metric} is unchanged within {points(margin)}"
    return f"{metric} shows no change beyond the noise ({low} to {high})"


def _selected(effect: Effect) -> str:
    """Return the selected value, at an end of the field with its rank: `0.3, the smallest,`."""
    text = _value(effect, effect.selected)
    ends = {value_key(effect.low.value): "smallest", value_key(effect.high.value): "largest"}
    end = ends.get(value_key(effect.selected))
    return text if end is None or not effect.numeric else f"{text}, the {end},"
